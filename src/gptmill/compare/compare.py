"""Two or more sides against each other: what differs, and whether by more than the noise.

Sides that differ in nothing but seeds are repetitions of one experiment. Between two experiments
with repetitions, a difference of means is larger than the noise if Welch's t exceeds the 97.5%
quantile of its degrees of freedom (Welch 1947).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from gptmill.compare.sides import Side, open_side
from gptmill.errors import UserError
from gptmill.files import atomic_file
from gptmill.report.charts import Chart, Series, line_chart
from gptmill.report.render import render

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_", "difference", "seconds", "memory_bytes")
HIGHER_IS_BETTER = (
    "accuracy", "f1", "pr_auc", "exact_match", "chrf", "score", "rouge_l", "agreement",
    "stop_rate", "coverage", "per_second", "mfu",
)  # fmt: skip
REPEATED = ("seed", "threads")  # threads follow from how many runs share a machine
COLORS = 6
MOST_ANSWERS = 8
LONGEST_SAMPLE = 300  # characters of a sample in the terminal


@dataclass(frozen=True)
class Row:
    """A name with each side's value, `None` where a side has none."""

    name: str
    values: list[str | float | None]

    @property
    def differs(self) -> bool:
        return len({str(value) for value in self.values}) > 1

    @property
    def conflicts(self) -> bool:
        """Whether those differ that have a value: a stage that did not run says nothing."""
        return len({str(value) for value in self.values if value is not None}) > 1

    @property
    def differences(self) -> list[float | None]:
        """Each later number less the first."""
        first, *others = self.values
        return [
            other - first if _number(other) and _number(first) else None  # type: ignore[operator]
            for other in others
        ]


@dataclass(frozen=True)
class Repeated:
    """One experiment's repetitions: mean and standard error of a metric over `count` of them."""

    mean: float
    error: float
    count: int


@dataclass(frozen=True)
class Contrast:
    """A metric over experiments; `larger` says whether each later one differs from the first by
    more than the noise, `None` where repetitions are too few to say."""

    name: str
    means: list[Repeated | None]
    larger: list[bool | None]


@dataclass(frozen=True)
class Comparison:
    """All that the table and the page show."""

    sides: list[Side]
    parameters: list[Row]
    data: list[Row]
    code: list[Row]
    metrics: list[Row]
    experiments: list[list[int]]
    contrasts: list[Contrast]

    @property
    def repeated(self) -> bool:
        return any(len(members) > 1 for members in self.experiments)


def compare(references: Sequence[str]) -> Comparison:
    """Open every reference and lay them side by side.

    Raises:
        UserError: fewer than two references, or one that means nothing.
    """
    if len(references) < 2:
        raise UserError("compare needs two or more executions, revisions or experiments")
    return compare_sides([open_side(reference) for reference in references])


def compare_sides(sides: Sequence[Side]) -> Comparison:
    """The comparison of sides that are open."""
    metrics = _rows(sides, lambda side: side.metrics)
    # What all sides measured can be compared, so it comes first.
    metrics.sort(key=lambda row: None in row.values)
    experiments = group_repetitions(sides)
    return Comparison(
        list(sides),
        [row for row in _rows(sides, lambda side: side.parameters) if row.differs],
        [row for row in _rows(sides, lambda side: side.data) if row.conflicts],
        [row for row in _rows(sides, lambda side: side.code) if row.conflicts],
        metrics,
        experiments,
        [_contrast(r, experiments) for r in metrics if r.differs and all(map(_number, r.values))],
    )


def group_repetitions(sides: Sequence[Side]) -> list[list[int]]:
    """Indices of sides that are alike in code and in every parameter but seeds and threads."""
    groups: dict[str, list[int]] = {}
    for place, side in enumerate(sides):
        values = {k: v for k, v in side.parameters.items() if k.split(".")[-1] not in REPEATED}
        key = f"{sorted(values.items())} {side.code_key}"
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def repeated(values: Sequence[float]) -> Repeated:
    """Mean and standard error (0 for a single value, which has none)."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / max(1, count - 1)
    return Repeated(mean, math.sqrt(variance / count), count)


def larger_than_noise(first: Repeated, other: Repeated) -> bool | None:
    """Welch's test at 95%, two-sided; `None` unless both were repeated."""
    from scipy.stats import t as student  # takes a second to import

    if first.count < 2 or other.count < 2:
        return None
    joint = first.error**2 + other.error**2
    if joint == 0:
        return first.mean != other.mean
    freedom = joint**2 / (first.error**4 / (first.count - 1) + other.error**4 / (other.count - 1))
    quantile = float(student.ppf(0.975, freedom))
    return abs(first.mean - other.mean) > quantile * math.sqrt(joint)


def better(name: str, difference: float) -> bool | None:
    """Whether a change of this metric is for the better; `None` if the name does not tell."""
    last = name.split("/")[-1]
    if difference == 0:
        return None
    if any(part in name for part in LOWER_IS_BETTER):
        return difference < 0
    if any(part in last or part in name.split("/") for part in HIGHER_IS_BETTER):
        return difference > 0
    return None


def terminal_table(comparison: Comparison, width: int = 100) -> str:
    """The comparison as text: what differs first, then every metric with its differences."""
    sides = [f"{chr(65 + i)} = {s.name}, {s.kind}" for i, s in enumerate(comparison.sides)]
    parts = ["\n".join(sides)]
    heads = [chr(65 + i) for i in range(len(sides))]
    for title, rows in (
        ("Parameters", comparison.parameters),
        ("Data", comparison.data),
        ("Code and machine", comparison.code),
    ):
        table = [["", *heads], *([row.name, *map(short, row.values)] for row in rows)]
        parts.append(
            f"{title} that differ\n" + _columns(table, width) if rows else f"{title}: no difference"
        )
    lines = [["", *heads, *(f"{head} − A" for head in heads[1:])]]
    for row in comparison.metrics:
        changes = [signed(change) for change in row.differences]
        lines.append([row.name, *map(short, row.values), *changes])
    parts.append("Metrics\n" + _columns(lines, width))
    if comparison.repeated:
        parts.append(_repetition_table(comparison, heads, width))
    for name, texts in last_samples(comparison.sides):
        shown = [f"{head}, step {step}: {' '.join(text.split())}" for head, step, text in texts]
        filled = [fill(text[:LONGEST_SAMPLE], width, initial_indent="  ", subsequent_indent="     ")
                  for text in shown]  # fmt: skip
        parts.append("\n".join([f"{name}, the last", *filled]))
    return "\n\n".join(parts)


def write_page(comparison: Comparison, output: Path) -> None:
    """The comparison as one HTML file that loads nothing."""
    page = render(
        "compare.html",
        package="gptmill.compare",
        comparison=comparison,
        heads=[chr(65 + i) for i in range(len(comparison.sides))],
        charts=curves(comparison.sides),
        samples=last_samples(comparison.sides),
        answers=differing_answers(comparison.sides),
        short=short,
        signed=signed,
        better=better,
    )
    with atomic_file(output) as beside:
        beside.write_text(page, encoding="utf-8", newline="\n")


def curves(sides: Sequence[Side]) -> list[Chart]:
    """Each curve that two sides or more have, drawn over each other."""
    names = list(dict.fromkeys(name for side in sides for name in side.curves))
    charts = []
    for name in names:
        series = [
            Series(chr(65 + i), side.curves[name], i % COLORS + 1, marks="validation" in name)
            for i, side in enumerate(sides)
            if name in side.curves
        ]
        if len(series) > 1:
            log = name.endswith("loss") or name.endswith("gradient_norm")
            charts.append(line_chart(name.replace("/", ": ", 1), series, log=log))
    return charts


def last_samples(sides: Sequence[Side]) -> list[tuple[str, list[tuple[str, int, str]]]]:
    """The last text of each kind that every side sampled for one prompt: (side, step, text)."""
    names = [
        name
        for name in sides[0].samples
        if all(name in side.samples for side in sides)
        and len({side.parameters.get(f"{name.split('/')[0]}.prompt") for side in sides}) == 1
    ]
    return [
        (name, [(chr(65 + i), *side.samples[name][-1]) for i, side in enumerate(sides)])
        for name in names
    ]


def differing_answers(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    """Prompts that every side answered, not all alike, with the answers."""
    common = [p for p in sides[0].answers if all(p in side.answers for side in sides)]
    pairs = [(prompt, [side.answers[prompt] for side in sides]) for prompt in common]
    return [(prompt, given) for prompt, given in pairs if len(set(given)) > 1][:MOST_ANSWERS]


def short(value: object) -> str:
    """A value as a cell: numbers in five figures, hashes by their start, `–` for none."""
    if value is None:
        return "–"
    if _number(value):
        number = float(value)  # type: ignore[arg-type]
        whole = math.isfinite(number) and (number.is_integer() or abs(number) >= 1e5)
        return f"{value:,.0f}" if whole else f"{value:.5g}"
    text = str(value)
    is_hash = len(text) >= 32 and all(c in "0123456789abcdef." for c in text.removesuffix(".dir"))
    return text[:10] if is_hash else text


def signed(difference: float | None) -> str:
    """A difference with its sign; `=` for none at all."""
    if difference is None:
        return "–"
    return f"{difference:+.4g}" if difference else "="


def _rows(sides: Sequence[Side], part: Callable[[Side], dict]) -> list[Row]:
    """Every name that some side has, in order of appearance."""
    names = dict.fromkeys(name for side in sides for name in part(side))
    return [Row(name, [part(side).get(name) for side in sides]) for name in names]


def _contrast(row: Row, experiments: list[list[int]]) -> Contrast:
    means = [repeated([row.values[i] for i in members]) for members in experiments]  # type: ignore[misc]
    return Contrast(row.name, list(means), [larger_than_noise(means[0], m) for m in means[1:]])


def _repetition_table(comparison: Comparison, heads: list[str], width: int) -> str:
    groups = ["".join(heads[i] for i in members) for members in comparison.experiments]
    lines = [["", *groups, *(f"{group} against {groups[0]}" for group in groups[1:])]]
    words = {True: "larger than noise", False: "within noise", None: "too few"}
    for contrast in comparison.contrasts:
        cells = [f"{m.mean:.5g} ± {m.error:.2g}" for m in contrast.means if m]
        lines.append([contrast.name, *cells, *(words[verdict] for verdict in contrast.larger)])
    title = "Repetitions, mean ± standard error; noise by Welch's t-test at 95%"
    return f"{title}\n{_columns(lines, width)}"


def _columns(rows: list[list[str]], width: int) -> str:
    """Aligned columns; the first shrinks where the terminal is narrow, cut in its middle."""
    sizes = [max(len(cell) for cell in column) for column in zip(*rows)]
    room = max(16, width - sum(size + 2 for size in sizes[1:]) - 2)
    sizes[0] = min(sizes[0], room)
    lines = []
    for first, *others in rows:
        if len(first) > sizes[0]:
            half = (sizes[0] - 1) // 2
            first = f"{first[: sizes[0] - 1 - half]}…{first[-half:]}"
        cells = "  ".join(cell.rjust(size) for cell, size in zip(others, sizes[1:]))
        lines.append(f"  {first.ljust(sizes[0])}  {cells}".rstrip())
    return "\n".join(lines)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
