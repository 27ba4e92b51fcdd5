"""What a study hands over: one idea of the course, run and measured, with its picture."""

from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from gptmill.errors import UserError


class CannotShow(UserError):
    """The text is too short, or of too few different tokens, for an idea."""


def require(count: int, needed: int, what: str) -> None:
    """Go on only where there is enough of what an idea is shown on.

    Raises:
        CannotShow: there is not.
    """
    if count < needed:
        raise CannotShow(f"it needs {needed} {what}, and there are {count}")


@dataclass(frozen=True)
class Finding:
    """One idea.

    Args:
        name: of its files: `NAME.png` and `NAME.csv`.
        chapter: of the syllabus, 1 to 8.
        title: what it is about.
        caption: what was found, with the figures; numbers come from this run.
        metrics: figures that are the same in every run, named `NAME/...` where they are stored.
        rows: the numbers behind the picture.
        figure: the picture.
        timings: seconds, which differ from run to run and stay out of hashed outputs.
    """

    name: str
    chapter: int
    title: str
    caption: str
    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    figure: Figure
    timings: dict[str, float] = field(default_factory=dict)


def small(value: float) -> str:
    """A difference near nothing, as 1e-07, or 0."""
    return f"{value:.0e}" if value else "0"
