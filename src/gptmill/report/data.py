"""The data as the model sees them, which `gptmill data check` leaves for the report."""

from pathlib import Path
from typing import Any

from gptmill.files import atomic_file, read_json, write_json
from gptmill.report.read import Results
from gptmill.report.render import render

CHECKED = Path("report/data.json")
# The sections of params.yaml that decide what the model sees.
SECTIONS = (
    "download", "tokenize", "prepare_classification", "prepare_instructions",
)  # fmt: skip


def write_page(checked: dict[str, Any], page: Path) -> None:
    """The parts as a page that loads nothing, and as JSON beside it, for the report."""
    page.parent.mkdir(parents=True, exist_ok=True)
    write_json(page.with_suffix(".json"), checked)
    with atomic_file(page) as temporary:
        temporary.write_text(render("data.html", **checked), encoding="utf-8", newline="\n")


def section(results: Results) -> dict[str, Any]:
    """What was checked, empty if nothing was, and whether it was with the present parameters."""
    path = results.root / CHECKED
    if not path.exists():
        return {"parts": [], "current": True}
    checked = read_json(path)
    present = {name: results.parameters.get(name) for name in SECTIONS}
    return {"parts": checked["parts"], "current": checked["parameters"] == present}
