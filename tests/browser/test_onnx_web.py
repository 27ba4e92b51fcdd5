"""Our ONNX folders in a browser agree with our session: onnxruntime-web and transformers.js."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gptmill.generate.sampling import SamplingOptions
from gptmill.prompt import format_prompt
from gptmill.runtime.session import Classifier, Generator
from tests.browser.conftest import HERE, OpenPage, serve_folder
from tests.unit.serve.conftest import models

__all__ = ["models"]  # a fixture
IMPORTS = {
    "onnxruntime-web": "/npm/onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime-web/webgpu": "/npm/onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime-common": "/npm/onnxruntime-common/dist/esm/index.js",
    "@huggingface/transformers": "/npm/@huggingface/transformers/dist/transformers.web.min.js",
}
PAGE = f"""<!doctype html><link rel="icon" href="data:,">
<script type="importmap">{json.dumps({"imports": IMPORTS})}</script>
<script type="module" src="run.mjs"></script>"""
STEPS = 48


@pytest.fixture(scope="module")
def site(models: Path, libraries: Path, tmp_path_factory) -> Iterator[str]:
    """Address of a server with the models, the libraries, and a page that uses both."""
    root = tmp_path_factory.mktemp("site")
    (root / "models").symlink_to(models)
    (root / "npm").symlink_to(libraries)
    (root / "run.mjs").symlink_to(HERE / "onnx_web.mjs")
    (root / "index.html").write_text(PAGE)
    server, address = serve_folder(root)
    yield address
    server.shutdown()


@pytest.fixture
def ours(site: str, open_page: OpenPage):
    """Calls a function of the page."""
    page = open_page(site)
    page.wait_for_function("window.ours")

    def call(name: str, *arguments):
        return page.evaluate(f"arguments => ours.{name}(...arguments)", arguments)

    return call


@pytest.mark.parametrize("name", ["text", "instructions"])
def test_greedy_tokens_are_the_same(name: str, ours, models: Path) -> None:
    generator = Generator(models / name, threads=1)
    for prompt in ("the cat", "the dog ran over the hill and"):
        ids = generator.tokenizer.encode(prompt)
        wanted = generator.generate([prompt], SamplingOptions(max_new_tokens=STEPS))[0].ids
        assert len(wanted) > 4
        assert ours("greedy", f"models/{name}", ids, len(wanted)) == ids + wanted


def test_the_classifier_gives_the_same_logits(ours, models: Path) -> None:
    classifier = Classifier(models / "classifier", threads=1)
    ids = classifier.encode(["the cat sat on the mat", "the dog", "over the hill the dog ran"])
    theirs = np.reshape(ours("classify", "models/classifier", ids), (3, -1))
    np.testing.assert_allclose(theirs, classifier.logits(ids), atol=1e-4)


def test_transformers_js_writes_the_same_text(ours, models: Path) -> None:
    """Tokenizer, generation settings and chat template included."""
    options = SamplingOptions(max_new_tokens=STEPS)
    prompt = "the cat sat"
    written = Generator(models / "text", threads=1).generate([prompt], options)[0].text
    assert written and ours("generate", "text", prompt, STEPS) == prompt + written

    instructed = Generator(models / "instructions", threads=1)
    asked = format_prompt({"instruction": prompt, "input": ""}, instructed.prompt_style)
    answer = instructed.generate([asked], options)[0].text
    messages = [{"role": "user", "content": prompt}]
    assert answer and ours("generate", "instructions", messages, STEPS).strip() == answer.strip()
