"""An environment of its own with `gptmill[runtime]` alone, as an application would make it.

Its packages are the newest that pyproject.toml allows, or the lowest.
"""

import json
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

from gptmill.generate.sampling import SamplingOptions
from gptmill.runtime.session import Classifier, Generator

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
APPLICATION = """
import importlib.util, json, sys
from pathlib import Path
from gptmill.generate.sampling import SamplingOptions
from gptmill.runtime.session import Classifier, Generator
options = SamplingOptions(max_new_tokens=5)
generator = Generator(Path(sys.argv[1]), 1)
print(json.dumps({
    "label": Classifier(Path(sys.argv[2]), 1).classify(["the cat"])[0].label,
    "text": generator.generate(["the cat"], options)[0].text,
    "pieces": list(generator.stream("the cat", options)),
    "found": [name for name in ("torch", "transformers") if importlib.util.find_spec(name)],
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""


def lowest_versions() -> list[str]:
    """`numpy==1.23.2` for `numpy>=1.23.2,<3`, of what inference needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [needed.split(",")[0].replace(">=", "==") for needed in project["dependencies"]]


@pytest.fixture(scope="session", params=["newest", "lowest"])
def clean_python(request, tmp_path_factory) -> Path:
    """The Python of a fresh environment."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    source = folder.parent / "source"  # pip builds in the folder it is given
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src/gptmill", source / "src/gptmill")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    install += [f"{source}[runtime]", *(lowest_versions() if request.param == "lowest" else [])]
    done = subprocess.run(install, capture_output=True, text=True, cwd=folder)
    if "No matching distribution" in done.stderr or "Failed to establish" in done.stderr:
        pytest.skip(f"the package registry does not answer: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return python


def test_an_application_needs_the_runtime_extra_alone(
    clean_python, language_model_onnx, classifier_onnx
):
    done = subprocess.run(
        [clean_python, "-c", APPLICATION, language_model_onnx, classifier_onnx],
        capture_output=True,
        text=True,
        env={},  # no PYTHONPATH leads back here
        cwd=clean_python.parent,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    options = SamplingOptions(max_new_tokens=5)
    expected = Generator(language_model_onnx, 1).generate(["the cat"], options)[0].text
    assert said["text"] == "".join(said["pieces"]) == expected
    assert said["label"] == Classifier(classifier_onnx, 1).classify(["the cat"])[0].label
    assert said["found"] == []
    assert not {"torch", "transformers", "pandas", "pydantic", "onnx", "mlflow"} & set(
        said["modules"]
    )
