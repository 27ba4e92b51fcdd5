"""What the course teaches: the findings of the stage `study`, by chapter, with their pictures."""

import base64
from dataclasses import dataclass, field
from itertools import groupby

from gptmill.report.charts import figure
from gptmill.report.read import Results

FOLDER = "plots/study"
CHAPTERS = {
    1: "What a language model is",
    2: "Text to tensors",
    3: "Attention",
    4: "The GPT",
    5: "Pretraining and decoding",
    6: "Pretrained weights",
    7: "Classification",
    8: "Instructions",
}


@dataclass(frozen=True)
class Lesson:
    """One finding; `image` is a data address, `table` rows of text below a row of heads."""

    title: str
    caption: str
    image: str
    table: list[list[str]] = field(default_factory=list)


def course(results: Results) -> list[tuple[str, list[Lesson]]]:
    """Chapters with their lessons; none where the stage has not run."""
    findings = sorted(results.entries(f"{FOLDER}/findings.json"), key=lambda f: f["chapter"])
    return [
        (CHAPTERS[chapter], [_lesson(results, finding) for finding in group])
        for chapter, group in groupby(findings, key=lambda finding: finding["chapter"])
    ]


def _lesson(results: Results, finding: dict) -> Lesson:
    picture = (results.root / FOLDER / f"{finding['name']}.png").read_bytes()
    image = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    table = _ladder(results) if finding["name"] == "attention_ladder" else []
    return Lesson(finding["title"], finding["caption"], image, table)


def _ladder(results: Results) -> list[list[str]]:
    """The rungs with their time on this machine, which is not part of the hashed numbers."""
    timings = results.timings.get("study", {})
    rows = [["rung", "parameters", "difference", "time"]]
    for row in results.rows(f"{FOLDER}/attention_ladder.csv"):
        seconds = timings.get(f"ladder/{row['rung'].replace(' ', '_')}_seconds")
        time = "–" if seconds is None else f"{seconds * 1e3:.2f} ms"
        difference = figure(float(row["max_difference"]))
        rows.append([row["rung"], f"{int(row['parameters']):,}", difference, time])
    return rows
