"""Independent readers of GPT-2 beside transformers: KerasHub, and the code of the book.

`make test-peers` installs both. KerasHub has its own reader of Hugging Face folders, and an
environment of its own, whose Python GPTMILL_KERAS_PYTHON names.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import load_tokenizer, train_byte_pairs
from gptmill.weights.assemble import assemble_language_model
from gptmill.weights.folder import load_language_model, save_model
from gptmill.weights.openai import Params, config_from_settings, read_checkpoint

GOLDEN = Path(__file__).parent / "golden" / "tensorflow_gpt2"
TOLERANCE = 1e-4
GREEDY_TOKENS = 64
PROMPT = "the quick fox, naïve"
KERAS = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras_hub, numpy as np
folder, prompt, count = json.loads(sys.argv[1])
model = keras_hub.models.GPT2CausalLM.from_preset(folder, preprocessor=None)
tokenizer = keras_hub.models.GPT2Tokenizer.from_preset(folder)
def logits(ids):
    row = np.array([ids])
    return model({"token_ids": row, "padding_mask": np.ones_like(row)}).detach().cpu().numpy()[0]
ids = [int(id) for id in tokenizer(prompt)]
tokens = list(ids)
for _ in range(count):
    tokens.append(int(logits(tokens)[-1].argmax()))
print("\\n" + json.dumps({"ids": ids, "logits": logits(ids).tolist(), "greedy": tokens[len(ids):],
                         "parameters": model.count_params()}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose continuation does not repeat itself."""
    tokenizer = train_byte_pairs(["Every effort moves you; the quick brown fox is lazy. " * 4], 320)
    torch.manual_seed(0)
    model = GPT2(GPT2Config(tokenizer.vocabulary_size, 128, layers=3, heads=4, width=64)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
            elif "c_proj.weight" in name or "wpe" in name:
                parameter.mul_(10)
    path = tmp_path_factory.mktemp("peers") / "model"
    save_model(path, model, tokenizer, provenance={})
    return path


def assert_same(folder: Path, theirs: dict) -> None:
    model = load_language_model(folder)
    tokens = list(theirs["ids"])
    with torch.no_grad():
        ours = model(torch.tensor([tokens]))[0].numpy()
        while len(tokens) < len(theirs["ids"]) + GREEDY_TOKENS:
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert np.abs(ours - np.array(theirs["logits"])).max() < TOLERANCE
    assert tokens[len(theirs["ids"]) :] == theirs["greedy"]


def keras_hub(folder: Path) -> dict:
    python = os.environ.get("GPTMILL_KERAS_PYTHON")
    if not python:
        pytest.skip("GPTMILL_KERAS_PYTHON names no Python that has keras-hub")
    given = json.dumps([str(folder), PROMPT, GREEDY_TOKENS])
    output = subprocess.run([python, "-c", KERAS, given], check=True, capture_output=True).stdout
    return json.loads(output.splitlines()[-1])


def test_keras_hub_says_the_same(folder: Path) -> None:
    theirs = keras_hub(folder)
    assert theirs["ids"] == load_tokenizer(folder).encode(PROMPT)
    assert theirs["parameters"] == sum(p.numel() for p in load_language_model(folder).parameters())
    assert len(set(theirs["greedy"])) > 4
    assert_same(folder, theirs)


@pytest.mark.parametrize("name", ["pretrained", "instructions"])
def test_keras_hub_opens_the_pipelines_own(name: str) -> None:
    folder = Path("models") / name
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: run the pipeline")
    theirs = keras_hub(folder)
    assert theirs["ids"] == load_tokenizer(folder).encode(PROMPT)
    assert_same(folder, theirs)


def test_the_books_loader_takes_our_params() -> None:
    ch04 = pytest.importorskip("llms_from_scratch.ch04", reason="the book's package is no pin")
    from llms_from_scratch.ch05 import load_weights_into_gpt

    settings, params = read_checkpoint(GOLDEN)
    config = config_from_settings(settings, "golden")
    book = ch04.GPTModel(
        {
            "vocab_size": config.vocabulary_size,
            "context_length": config.context_length,
            "emb_dim": config.width,
            "n_heads": config.heads,
            "n_layers": config.layers,
            "drop_rate": 0.0,
            "qkv_bias": True,
        }
    ).eval()
    load_weights_into_gpt(book, params)
    ids = torch.arange(config.context_length)[None]
    with torch.no_grad():
        theirs = book(ids)
        ours = assemble_language_model(config, Params(params, "golden"))(ids)
    assert (ours - theirs).abs().max() < TOLERANCE
