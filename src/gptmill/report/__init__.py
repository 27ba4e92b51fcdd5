"""The report: one HTML file of all that the pipeline measured, with no address outside itself."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gptmill.files import atomic_file
from gptmill.git import git
from gptmill.params import flatten
from gptmill.report import answers, cards, classification, data, learning
from gptmill.report.course import course
from gptmill.report.graph import NARROW, WIDE, descriptions, draw
from gptmill.report.read import Results
from gptmill.report.render import render

MAKE = {"calibration": "make repro"}


def build_report(root: Path, output: Path) -> None:
    """Read what the pipeline under `root` left and write the page; what is absent is said to be.

    Raises:
        UserError: a file that is there cannot be read.
    """
    results = Results(root)
    page = render("page.html", **_content(results))
    with atomic_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def _content(results: Results) -> dict[str, Any]:
    """What the template shows, section by section."""
    return {
        "profile": results.parameters.get("profile", "unknown"),
        "facts": _facts(results),
        "graphs": _graphs(results),
        "descriptions": descriptions(results.pipeline),
        "cards": cards.cards(results),
        "data": data.section(results),
        "runs": learning.training_runs(results),
        "samples": learning.samples(results),
        "classification": classification.section(results),
        "answers": answers.section(results),
        "course": course(results),
        "parameters": _parameters(results),
        "timings": cards.timing_rows(results),
        "commands": _commands(results),
    }


def _facts(results: Results) -> list[tuple[str, str]]:
    """Where and when: the line under the title."""
    timings = results.timings.values()
    started = max((timing["started"] for timing in timings), default="")
    machine = max(timings, key=lambda timing: timing["seconds"], default={})
    commit = git("-C", str(results.root), "rev-parse", "--short", "HEAD")
    facts = {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "last stage started": started.replace("T", " ").replace("+00:00", " UTC"),
        "host": machine.get("host", ""),
        "device": machine.get("device", ""),
        "threads": machine.get("threads", ""),
        "commit": commit,
    }
    return [(name, value) for name, value in facts.items() if value]


def _graphs(results: Results) -> list[Markup]:
    if not results.pipeline:
        return []
    seconds = {stage: timing["seconds"] for stage, timing in results.timings.items()}
    return [draw(results.pipeline, seconds, shape) for shape in (WIDE, NARROW)]


def _parameters(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Section by section, dotted names as `dvc exp run -S` takes them."""
    sections = {}
    for section, values in results.parameters.items():
        rows = flatten(values, f"{section}.") if isinstance(values, dict) else {section: values}
        sections[section] = [(name, str(value)) for name, value in rows.items()]
    return list(sections.items())


def _commands(results: Results) -> list[str]:
    profile = results.parameters.get("profile", "calibration")
    commit = git("-C", str(results.root), "rev-parse", "HEAD")
    checkout = [f"git checkout {commit}"] if commit else []
    return [*checkout, MAKE.get(profile, f"make repro PROFILE={profile}"), "make ui"]
