"""A registered model as MLflow serves it: text in, label or text out, no PyTorch.

MLflow imports this module by its name and calls `_load_pyfunc` with a folder that holds one file,
`reference.json`: DVC owns the model's bytes, the registry knows which ones they are. They are found
in the pipeline's own folder, or, once that holds a newer model, in DVC's cache.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmill.errors import UserError
from gptmill.files import read_json
from gptmill.generate.sampling import SamplingOptions
from gptmill.onnx.session import Classifier, Generator
from gptmill.prompt import format_prompt

if TYPE_CHECKING:
    from pandas import DataFrame

REFERENCE = "reference.json"
PROVENANCE = "provenance.json"
CACHE = ".dvc/cache/files/md5"


def content_hashes(folder: Path) -> dict[str, str]:
    """Each file's MD5 by its name in the folder, as DVC's cache knows it; without the provenance,
    which changes with the code even when the model does not."""
    return {
        path.relative_to(folder).as_posix(): _md5(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != PROVENANCE
    }


def find_folder(reference: dict[str, Any], beside: Path) -> Path:
    """A folder with exactly the referenced files: the pipeline's, or one made in `beside`.

    Raises:
        UserError: a file is neither where the pipeline put it nor in DVC's cache.
    """
    published = Path(reference["root"], reference["path"])
    if published.is_dir() and content_hashes(published) == reference["files"]:
        return published
    for name, digest in reference["files"].items():
        cached = Path(reference["root"], CACHE, digest[:2], digest[2:])
        target = beside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not cached.is_file():
            raise UserError(
                f"{reference['path']}/{name} of this version (MD5 {digest}) is neither under "
                f"{reference['root']} nor in its DVC cache: check out the commit it was made "
                "from and run `dvc checkout`, or `dvc pull`"
            )
        try:
            os.link(cached, target)
        except OSError:  # another file system
            shutil.copyfile(cached, target)
    return beside


class ServedClassifier:
    """A column `text` to columns `label` and `probability`, of that label."""

    def __init__(self, folder: Path) -> None:
        self._classifier = Classifier(folder)

    def predict(self, frame: "DataFrame", params: dict[str, Any] | None = None) -> "DataFrame":
        found = self._classifier.classify(list(frame["text"]))
        return type(frame)(
            {
                "label": [one.label for one in found],
                "probability": [one.probabilities[one.label] for one in found],
            }
        )


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
        return type(frame)({"text": [completion.text for completion in found]})


def _load_pyfunc(path: str) -> ServedClassifier | ServedGenerator:
    """MLflow's entry point; `path` is the folder of `reference.json`."""
    reference = read_json(Path(path) / REFERENCE)
    with tempfile.TemporaryDirectory(prefix="gptmill-") as beside:
        folder = find_folder(reference, Path(beside))
        served = ServedClassifier if reference["task"] == "classify" else ServedGenerator
        return served(folder)  # the session holds the files, wherever they were


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
