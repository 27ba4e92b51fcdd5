"""A registered model as MLflow serves it: text in, label or text out, no PyTorch.

MLflow imports this module by its name and calls `_load_pyfunc` with a folder that holds one file,
`reference.json`: DVC owns the model's bytes, the registry knows which ones they are. They are found
by their hashes, in the project's own folder or, once that holds a newer model, in DVC's cache.
Which project does not stand in the reference, so that it may be moved or copied; the first that
has the bytes will do:

- `GPTMILL_PROJECT`, if it is set;
- the project in which the reference lies;
- `DVC_ROOT`, the working directory, and what is above it;
- the folder of the SQLite database in `MLFLOW_TRACKING_URI`.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmill.dvc import find_files, md5
from gptmill.files import read_json
from gptmill.generate.sampling import SamplingOptions
from gptmill.prompt import format_prompt
from gptmill.runtime.session import Classifier, Generator
from gptmill.seal import SEAL

if TYPE_CHECKING:
    from pandas import DataFrame, Series

REFERENCE = "reference.json"
PROVENANCE = "provenance.json"


def content_hashes(folder: Path) -> dict[str, str]:
    """Each file's MD5 by its name in the folder, as DVC's cache knows it; without the provenance,
    which changes with the code even when the model does not, and the list of hashes, which has
    the provenance's."""
    return {
        path.relative_to(folder).as_posix(): md5(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (PROVENANCE, SEAL)
    }


def projects(reference_folder: Path) -> list[Path]:
    """The folders in which the bytes of a reference may be, the likeliest first."""
    return list(dict.fromkeys(path.resolve() for path in _projects(reference_folder)))


def _projects(reference_folder: Path) -> Iterator[Path]:
    if named := os.environ.get("GPTMILL_PROJECT"):
        yield Path(named)
    root, here = Path(os.environ.get("DVC_ROOT", ".")).resolve(), Path.cwd()
    for start in (reference_folder.resolve(), root, here):
        yield from (path for path in (start, *start.parents) if (path / ".dvc").is_dir())
    yield from (root, here)
    prefix, address = "sqlite:///", os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith(prefix):
        yield Path(address.removeprefix(prefix)).parent


def find_folder(reference: dict[str, Any], beside: Path, reference_folder: Path) -> Path:
    """A folder with exactly the referenced files, made in `beside`.

    Raises:
        UserError: a file is neither where the pipeline puts it nor in DVC's cache.
    """
    found = find_files(reference["path"], reference["files"], *projects(reference_folder))
    for name, place in found.items():
        target = beside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(place, target)
        except OSError:  # another file system
            shutil.copyfile(place, target)
    return beside


class ServedClassifier:
    """A column `text` to the label of each row, under the frame's own index.

    With `params={"probability": True}` to columns `label` and `probability`, of that label.
    """

    def __init__(self, folder: Path) -> None:
        self._classifier = Classifier(folder)

    def predict(
        self, frame: "DataFrame", params: dict[str, Any] | None = None
    ) -> "DataFrame | Series[str]":
        found = self._classifier.classify(list(frame["text"]))
        columns = {
            "label": [one.label for one in found],
            "probability": [one.probabilities[one.label] for one in found],
        }
        answer = type(frame)(columns, index=frame.index)
        # One column as a series: what MLflow's evaluation takes a classifier's predictions to be.
        return answer if (params or {}).get("probability") else answer["label"]


class ServedGenerator:
    """A column `text`, prompts or instructions, to a column `text` of what follows.

    `params` are `SamplingOptions` by name.
    """

    def __init__(self, folder: Path) -> None:
        self._generator = Generator(folder)

    def predict(self, frame: "DataFrame", params: dict[str, Any] | None = None) -> "DataFrame":
        style = self._generator.prompt_style
        prompts = [
            format_prompt({"instruction": text, "input": ""}, style) if style else text
            for text in frame["text"]
        ]
        found = self._generator.generate(prompts, SamplingOptions(**(params or {})))
        answers = [completion.text for completion in found]
        return type(frame)({"text": answers}, index=frame.index)


def _load_pyfunc(path: str) -> ServedClassifier | ServedGenerator:
    """MLflow's entry point; `path` is the folder of `reference.json`."""
    reference = read_json(Path(path) / REFERENCE, dict)
    with tempfile.TemporaryDirectory(prefix="gptmill-") as beside:
        folder = find_folder(reference, Path(beside), Path(path))
        served = ServedClassifier if reference["task"] == "classify" else ServedGenerator
        return served(folder)  # the session holds the files, wherever they were
