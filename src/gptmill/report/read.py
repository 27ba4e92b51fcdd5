"""What the pipeline left to be read; what is absent stays absent."""

import csv
from pathlib import Path
from typing import Any

from gptmill.dvc import stages
from gptmill.files import read_json
from gptmill.params import PARAMS_FILE, read_yaml
from gptmill.shapes import read_json_as

Point = tuple[float, float]


class Results:
    """The results under a project's root. A missing file reads as empty, a broken one raises."""

    def __init__(self, root: Path) -> None:
        self.root = root
        parameters = root / PARAMS_FILE
        self.parameters = read_yaml(parameters) if parameters.exists() else {}
        self.pipeline = stages(root) if (root / "dvc.yaml").exists() else {}
        self.metrics = self._by_stage("metrics")
        self.timings = self._by_stage("timings")

    def metric(self, stage: str, name: str) -> Any:
        """One metric, `None` if the stage or the name is absent."""
        return self.metrics.get(stage, {}).get(name)

    def rows(self, path: str) -> list[dict[str, str]]:
        """The rows of a CSV."""
        file = self.root / path
        if not file.exists():
            return []
        with file.open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))

    def curve(self, path: str, y: str, x: str = "step") -> list[Point]:
        """Two columns of a CSV as points; rows without a value are left out."""
        rows = self.rows(path)
        return [(float(row[x]), float(row[y])) for row in rows if row.get(x) and row.get(y)]

    def entries(self, path: str) -> list[dict[str, Any]]:
        """A JSON list of objects."""
        file = self.root / path
        return read_json_as(file, list[dict[str, Any]]) if file.exists() else []

    def _by_stage(self, folder: str) -> dict[str, dict[str, Any]]:
        return {
            path.stem: read_json(path, dict) for path in sorted((self.root / folder).glob("*.json"))
        }
