"""GGUF: read back by the `gguf` package, and run by llama.cpp where it is installed.

llama.cpp comes as `xllamacpp`, which has wheels, where llama-cpp-python builds from source.
`make test-peers` installs it in an environment of its own, whose Python GPTMILL_LLAMA_PYTHON names.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer

from gptmill.card import ModelCard
from gptmill.errors import UserError
from gptmill.files import sha256
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.prompt import chat_template, format_prompt
from gptmill.tokenizer import (
    BytePairTokenizer,
    load_stop_tokens,
    load_tokenizer,
    train_byte_pairs,
    train_vocabulary,
)
from gptmill.weights.folder import (
    load_language_model,
    save_model,
)

gguf = pytest.importorskip("gguf")
from gptmill.export.gguf import export_gguf  # noqa: E402

CONFIG = GPT2Config(340, 128, 3, 2, 64)  # more rows than tokens, as padded vocabularies have
PROMPT = "the quick fox"
GREEDY_TOKENS = 64
# llama.cpp looks GELU up in a table of half precision: hence its difference even for f32.
TOLERANCE = {"f32": 1e-2, "f16": 1e-2, "q8_0": 1e-1}
# Its server, asked over loopback: ids of a text, greedy tokens, all log-probabilities, the chat.
LLAMA = """
import json, sys, urllib.request
import xllamacpp as llama
path, prompt, ids, count, rows = json.loads(sys.argv[1])
parameters = llama.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel = path, 256, 1
parameters.cpuparams.n_threads = 1
parameters.cache_type_k = parameters.cache_type_v = llama.ggml_type.GGML_TYPE_F32
server = llama.Server(parameters)
def ask(name, **body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{server.listening_address}/{name}", data)
    request.add_header("Content-Type", "application/json")
    return json.load(urllib.request.urlopen(request))
answer = ask("completion", prompt=ids, n_predict=count, temperature=0, n_probs=rows,
             return_tokens=True, cache_prompt=False)
first = answer["completion_probabilities"][0]["top_logprobs"]
print("\\n" + json.dumps({
    "tokens": ask("tokenize", content=prompt, add_special=False)["tokens"],
    "greedy": answer["tokens"],
    "logarithms": {entry["id"]: entry["logprob"] for entry in first},
    "chat": ask("apply-template", messages=[{"role": "user", "content": prompt}])["prompt"],
}), flush=True)
"""


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return train_byte_pairs(["Every effort moves you; the quick brown fox is lazy. " * 4], 320)


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    model = GPT2(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
            elif ".c_" in name or "wpe" in name:
                parameter.mul_(10)
    return model


@pytest.fixture(scope="module")
def folder(
    model: GPT2, tokenizer: BytePairTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model"
    save_model(path, model, tokenizer, provenance={}, prompt_style="alpaca")
    return path


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Metadata and tensors, quantized ones back in float32."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }
    return fields, tensors


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 0), ("f16", 1e-3), ("q8_0", 1e-2)])
def test_every_tensor_comes_back(
    dtype: str, tolerance: float, folder: Path, model: GPT2, tmp_path: Path
) -> None:
    export_gguf(folder, tmp_path / "model.gguf", dtype)
    _, tensors = read(tmp_path / "model.gguf")
    block = model.transformer.h[2]
    expected = {
        "token_embd.weight": model.transformer.wte.weight,
        "position_embd.weight": model.transformer.wpe.weight,
        "output_norm.bias": model.transformer.ln_f.bias,
        "blk.2.attn_norm.weight": block.ln_1.weight,
        "blk.2.attn_qkv.weight": block.attn.c_attn.weight,
        "blk.2.attn_qkv.bias": block.attn.c_attn.bias,
        "blk.2.attn_output.weight": block.attn.c_proj.weight,
        "blk.2.ffn_norm.bias": block.ln_2.bias,
        "blk.2.ffn_up.weight": block.mlp.c_fc.weight,
        "blk.2.ffn_down.weight": block.mlp.c_proj.weight,
    }
    for name, parameter in expected.items():
        np.testing.assert_allclose(
            tensors[name].reshape(parameter.shape), parameter.detach(), atol=tolerance, rtol=1e-3
        )
    assert len(tensors) == 4 + 12 * CONFIG.layers
    assert "output.weight" not in tensors, "tied"


def test_tokenizer_template_and_stop_token(
    folder: Path, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    modelfile = export_gguf(folder, tmp_path / "model.gguf", "f16")
    fields, _ = read(tmp_path / "model.gguf")
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == CONFIG.vocabulary_size
    assert tokens[tokenizer.end_of_text] == "<|endoftext|>"
    control = gguf.TokenType.CONTROL
    kinds = fields["tokenizer.ggml.token_type"]
    assert [i for i, kind in enumerate(kinds) if kind == control] == [tokenizer.end_of_text]
    assert "".join(tokens[i] for i in tokenizer.encode(" the fox")) == "ĠtheĠfox"
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in tokenizer.merges]
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text
    assert fields["tokenizer.chat_template"] == chat_template("alpaca")
    text = modelfile.read_text()
    assert text.startswith("FROM ./model.gguf\n")
    assert "### Instruction:\n{{ .Prompt }}\n\n### Response:\n{{ .Response }}" in text
    assert 'PARAMETER stop "<|endoftext|>"' in text


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    export_gguf(folder, tmp_path / "first.gguf", "q8_0")
    export_gguf(folder, tmp_path / "second.gguf", "q8_0")
    assert sha256(tmp_path / "first.gguf") == sha256(tmp_path / "second.gguf")


def test_what_llama_cpp_lacks(model: GPT2, tokenizer: BytePairTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(folder, GPT2(replace(CONFIG, activation="relu")), tokenizer, provenance={})
    with pytest.raises(UserError, match="cannot express activation 'relu'"):
        export_gguf(folder, tmp_path / "model.gguf")
    save_model(folder, model, train_vocabulary(["abc"], "character", 9), provenance={})
    with pytest.raises(UserError, match="byte-pair tokenizers"):
        export_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(UserError, match="no GGUF type 'q4'"):
        export_gguf(folder, tmp_path / "model.gguf", "q4")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("changes", [{}, {"bias": False, "positions": "none", "tied_head": False}])
def test_llama_cpp_says_the_same(
    dtype: str, changes: dict, model: GPT2, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    if changes:
        torch.manual_seed(0)
        model = GPT2(replace(CONFIG, **changes)).eval()
    save_model(tmp_path / "model", model, tokenizer, provenance={}, prompt_style="alpaca")
    assert_llama_cpp_agrees(tmp_path / "model", dtype, tmp_path / "model.gguf")


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
def test_llama_cpp_runs_the_pipelines_own(dtype: str, tmp_path: Path) -> None:
    folder = Path("models/instructions")
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: run the pipeline")
    assert_llama_cpp_agrees(folder, dtype, tmp_path / "model.gguf")


def test_llama_cpp_knows_added_tokens(
    model: GPT2, tokenizer: BytePairTokenizer, tmp_path: Path
) -> None:
    """GPT-2's tokens with two of a chat and one more, as somebody adds them by `transformers`."""
    tokenizer.save(tmp_path)
    fast = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fast.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast.add_tokens(["wolf"])
    fast.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    chat = load_tokenizer(tmp_path)
    save_model(tmp_path / "model", model, chat, provenance={}, prompt_style="alpaca")
    prompt = "<|im_start|>the quick wolf fox"
    start = tokenizer.vocabulary_size
    assert chat.encode(prompt)[0] == start and start + 2 in chat.encode(prompt)
    assert chat.end_of_text == start + 1
    assert_llama_cpp_agrees(tmp_path / "model", "f32", tmp_path / "model.gguf", prompt)


def assert_llama_cpp_agrees(folder: Path, dtype: str, path: Path, prompt: str = PROMPT) -> None:
    """Ids, rendered chat, log-probabilities and, but for q8_0, 64 greedy tokens."""
    python = os.environ.get("GPTMILL_LLAMA_PYTHON")
    if not python:
        pytest.skip("GPTMILL_LLAMA_PYTHON names no Python that has xllamacpp")
    export_gguf(folder, path, dtype)
    model, style = load_language_model(folder), ModelCard.read(folder).prompt_style
    ids = load_tokenizer(folder).encode(prompt)
    given = json.dumps([str(path), prompt, ids, GREEDY_TOKENS, model.config.vocabulary_size])
    output = subprocess.run([python, "-c", LLAMA, given], check=True, capture_output=True).stdout
    theirs = next(json.loads(line) for line in output.splitlines() if line.startswith(b"{"))
    assert theirs["tokens"] == ids
    assert theirs["chat"] == format_prompt({"instruction": prompt, "input": ""}, style)
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0, -1].log_softmax(-1).tolist()
        assert len(theirs["logarithms"]) == len(ours)
        for token, logarithm in theirs["logarithms"].items():
            assert abs(logarithm - ours[int(token)]) < TOLERANCE[dtype]
        if dtype != "q8_0":
            expected = greedy(model, ids)
            if (end := load_stop_tokens(folder)[0]) in expected:
                expected = expected[: expected.index(end)]
            assert theirs["greedy"][: len(expected)] == expected


def greedy(model: GPT2, ids: list[int]) -> list[int]:
    tokens = list(ids)
    while len(tokens) < len(ids) + GREEDY_TOKENS:
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(ids) :]
