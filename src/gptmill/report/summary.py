"""The figures as Markdown: the same for the same results, so that DVC can own it."""

from pathlib import Path

from gptmill.files import atomic_file
from gptmill.report.cards import figures
from gptmill.report.read import Results


def write_summary(root: Path, output: Path) -> None:
    """Write what the page's cards say, without wall times, for a pull request or a CI summary.

    Raises:
        UserError: a file that is there cannot be read.
    """
    results = Results(root)
    profile = results.parameters.get("profile", "unknown")
    lines = [f"## gptmill, profile {profile}", "", "| what | reached | |", "|---|---|---|"]
    for card in figures(results):
        target = {"good": " **On target.**", "short": " **Short of target.**"}.get(card.state, "")
        lines.append(f"| {card.title} | {card.value} | {_cell(card.note)}.{target} |")
    with atomic_file(output) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
