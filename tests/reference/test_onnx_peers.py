"""Other software opens our ONNX folders as they are: Optimum and onnxruntime-genai.

Neither is among the pinned packages (Optimum holds `transformers` back). `make test-peers` installs
them in an environment of their own and names the folders, which this module writes in ours, in
GPTMILL_PEER_FOLDERS.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gptmill.generate.sampling import SamplingOptions
from gptmill.runtime.session import Classifier, Generator

PROMPTS = ["the cat sat", "the dog ran over the hill"]
STEPS = 12
VARIANTS = ["", "-weights8", "-dynamic8"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """ONNX folders `language_model` and `classifier`, and their quantized variants."""
    if "GPTMILL_PEER_FOLDERS" in os.environ:
        return Path(os.environ["GPTMILL_PEER_FOLDERS"])
    root = tmp_path_factory.mktemp("peers")
    write_folders(root)
    return root


def write_folders(root: Path) -> None:
    """Random models of the default profile's kind."""
    import torch

    from gptmill.export.onnx import export_classifier, export_language_model
    from gptmill.export.quantize import METHODS
    from gptmill.model.classifier import GPT2Classifier
    from gptmill.model.config import GPT2Config
    from gptmill.model.gpt2 import GPT2
    from gptmill.tokenizer import train_byte_pairs
    from gptmill.weights.folder import save_model

    tokenizer = train_byte_pairs(["the cat sat on the mat and the dog ran over the hill " * 9], 280)
    config = GPT2Config(tokenizer.vocabulary_size, 48, layers=3, heads=4, width=64)
    torch.manual_seed(0)
    models = {"language_model": GPT2(config), "classifier": GPT2Classifier(config, 2)}
    for name, model in models.items():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.1, 0.2)
        save_model(root / "models" / name, model.eval(), tokenizer, provenance={})
        export = export_language_model if name == "language_model" else export_classifier
        export(root / "models" / name, root / name, opset=20)
        for method, layers in METHODS.items():
            export(root / "models" / name, root / f"{name}-{method}", opset=20, layers=layers)


def our_tokens(folder: Path) -> list[list[int]]:
    options = SamplingOptions(max_new_tokens=STEPS)
    completions = Generator(folder, threads=1).generate(PROMPTS, options)
    return [[*completion.prompt_ids, *completion.ids] for completion in completions]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("io_binding", [False, True])
def test_optimum_generates_the_same_tokens(io_binding, variant, folders):
    optimum = pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx is not installed")
    transformers = pytest.importorskip("transformers")
    folder = folders / f"language_model{variant}"
    model = optimum.ORTModelForCausalLM.from_pretrained(folder, use_io_binding=io_binding)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    rows = model.generate(**batch, max_new_tokens=STEPS, do_sample=False)
    for row, mask, ours in zip(rows.tolist(), batch["attention_mask"], our_tokens(folder)):
        assert row[int((mask == 0).sum()) :][: len(ours)] == ours


@pytest.mark.parametrize("variant", VARIANTS)
def test_optimum_classifies_the_same(variant, folders):
    optimum = pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx is not installed")
    transformers = pytest.importorskip("transformers")
    folder = folders / f"classifier{variant}"
    model = optimum.ORTModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    expected = model(**batch).logits.softmax(dim=1).numpy()
    for ours, theirs in zip(Classifier(folder, threads=1).classify(PROMPTS), expected):
        np.testing.assert_allclose(list(ours.probabilities.values()), theirs, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnxruntime_genai_generates_the_same_tokens(variant, folders):
    genai = pytest.importorskip(
        "onnxruntime_genai", reason="onnxruntime-genai is not installed", exc_type=ImportError
    )
    folder = folders / f"language_model{variant}"
    model = genai.Model(str(folder))
    tokenizer = genai.Tokenizer(model)
    for prompt, ours in zip(PROMPTS, our_tokens(folder), strict=True):
        ids = tokenizer.encode(prompt)
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + STEPS)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        assert list(generator.get_sequence(0))[: len(ours)] == ours


if __name__ == "__main__":
    root = Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    write_folders(root)
