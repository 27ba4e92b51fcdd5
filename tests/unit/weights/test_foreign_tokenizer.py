"""A model with somebody's own tokens: saved, continued, exported, served, and stopped."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from gptmill.errors import UserError
from gptmill.files import read_json
from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import LibraryTokenizer, load_stop_tokens, load_tokenizer
from gptmill.weights.folder import load_language_model, save_model
from gptmill.weights.foundation import read_foundation
from tests.support.unsealed import unsealed

TEXT = 'the quick brown fox jumps over the lazy dog {"name": 12, "done": true} ' * 20
END, START = "<|im_end|>", "<|im_start|>"
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
CONFIG |= {"bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": "{{ x }}"}


def chat() -> FastTokenizer:
    """GPT-2's rules with `<|endoftext|>` at id 0, and tokens added after the vocabulary."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    fast.train_from_iterator([TEXT], trainer)
    fast.add_special_tokens([START, END])
    fast.add_tokens(["wolf"])
    return fast


def write(folder: Path, fast: FastTokenizer, stops: object = None) -> Path:
    """A folder as Hugging Face has it, of a model whose likeliest token is always the end."""
    size = fast.get_vocab_size()
    torch.manual_seed(0)
    model = GPT2(GPT2Config(size + 2, 32, 1, 2, 32, tied_head=False)).eval()
    folder.mkdir(exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    tokenizer = load_tokenizer(folder)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.end_of_text] = 1
    save_model(folder, model, tokenizer, provenance={}, stop_tokens=stops)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return unsealed(write(tmp_path / "model", chat(), [301, 0]))


def test_saving_keeps_tokens_roles_and_stops(folder: Path, tmp_path: Path) -> None:
    model, tokenizer, _, stops = read_foundation("folder", str(folder), "", 0)
    save_model(tmp_path / "again", model, tokenizer, provenance={}, stop_tokens=stops)
    again = load_tokenizer(tmp_path / "again")
    assert again.identity == tokenizer.identity
    assert again.encode(f"a {START} wolf") == tokenizer.encode(f"a {START} wolf")
    assert load_stop_tokens(tmp_path / "again") == [301, 0]
    config = read_json(tmp_path / "again" / "tokenizer_config.json")
    assert (config["eos_token"], config["pad_token"]) == (END, "<|endoftext|>")
    assert config["chat_template"] == "{{ x }}"
    found = read_json(tmp_path / "again" / "config.json")
    assert (found["bos_token_id"], found["pad_token_id"]) == (0, 0)
    save_model(tmp_path / "again", model, tokenizer, provenance={}, prompt_style="phi3")
    assert load_stop_tokens(tmp_path / "again") == [tokenizer.end_of_text] == [301]
    assert "<|user|>" in read_json(tmp_path / "again" / "tokenizer_config.json")["chat_template"]


def test_tokens_without_a_row_are_named(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    small = GPT2(GPT2Config(302, 32, 1, 2, 32))
    with pytest.raises(UserError, match=r"303 tokens and the model only 302.* 'wolf'"):
        save_model(tmp_path / "small", small, tokenizer, provenance={})


def test_an_added_end_of_text_ends_a_response(folder: Path, tmp_path: Path) -> None:
    options = SamplingOptions(max_new_tokens=5)
    tokenizer, decoder = load_tokenizer(folder), TorchDecoder(load_language_model(folder))
    found = generate(decoder, tokenizer, ["the fox", ""], options)
    assert [(one.stop_reason, one.text) for one in found] == [("end_of_text", "")] * 2
    assert found[1].prompt_ids == [0], "what begins a text"
    from gptmill.export.onnx import export_language_model
    from gptmill.runtime.session import Generator

    export_language_model(folder, tmp_path / "onnx", opset=20)
    unsealed(tmp_path / "onnx")
    generator = Generator(tmp_path / "onnx", 1)
    assert generator.stop_tokens == tuple(load_stop_tokens(folder)) == (301, 0)
    assert generator.generate(["the fox", ""], options) == found
    # A folder of somebody else may name them in generation_config.json alone.
    config = read_json(tmp_path / "onnx" / "config.json") | {"eos_token_id": None}
    (tmp_path / "onnx" / "config.json").write_text(json.dumps(config))
    assert Generator(tmp_path / "onnx", 1).stop_tokens == (301, 0)


def test_gguf_carries_added_tokens(folder: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from gptmill.export.gguf import export_gguf

    modelfile = export_gguf(folder, tmp_path / "model.gguf", "f32")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = [gguf.TokenType(kind) for kind in fields["tokenizer.ggml.token_type"].contents()]
    assert tokens[300:] == [START, END, "wolf", "[PAD303]", "[PAD304]"]
    control, own, unused = (
        gguf.TokenType.CONTROL,
        gguf.TokenType.USER_DEFINED,
        gguf.TokenType.UNUSED,
    )
    assert kinds[300:] == [control, control, own, unused, unused]
    assert (tokens[0], kinds[0]) == ("<|endoftext|>", control)
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 301
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 0
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 0
    assert "{{ .Response }}<|im_end|>" in modelfile.read_text()
    assert 'PARAMETER stop "<|im_end|>"' in modelfile.read_text()


def trimming() -> FastTokenizer:
    fast = chat()
    fast.add_tokens([AddedToken("bear", lstrip=True)])
    return fast


def changed(**parts: object) -> FastTokenizer:
    fast = chat()
    for name, part in parts.items():
        setattr(fast, name, part)
    return fast


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
SPLIT = pre_tokenizers.Split(Regex(r"\s"), "isolated")


@pytest.mark.parametrize(
    ("fast", "message"),
    [
        (changed(normalizer=normalizers.Lowercase()), "the normalizer Lowercase"),
        (changed(pre_tokenizer=DIGITS), "the pre-tokenizer Sequence"),
        (changed(pre_tokenizer=SPLIT), "the pre-tokenizer Split"),
        (changed(pre_tokenizer=pre_tokenizers.ByteLevel(True)), "add_prefix_space"),
        (changed(pre_tokenizer=pre_tokenizers.ByteLevel(False, True, False)), "ByteLevel"),
        (trimming(), r"take the space beside them, \['bear'\]"),
    ],
    ids=["normalizer", "digits", "split", "space", "pattern", "trimming"],
)
def test_what_gguf_cannot_hold_is_named(fast: FastTokenizer, message: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from gptmill.export.gguf import export_gguf

    folder = write(tmp_path / "model", fast)
    with pytest.raises(UserError, match=f"this one has .*{message}"):
        export_gguf(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_gguf_refuses_stops_that_are_no_tokens(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from gptmill.export.gguf import export_gguf

    (folder / "generation_config.json").write_text('{"eos_token_id": [301, 304]}')
    with pytest.raises(UserError, match=r"stop tokens \[304\] are none of its 303 tokens"):
        export_gguf(folder, tmp_path / "model.gguf")


SCHEMA = {"type": "object", "properties": {"name": {"type": "integer"}}, "required": ["name"]}


def test_a_schema_holds_with_added_tokens(folder: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("llguidance")
    from gptmill.serve.constraint import Grammars

    tokenizer = load_tokenizer(folder)
    grammars = Grammars(tokenizer)
    schema = SCHEMA | {"additionalProperties": False}
    constraint = grammars.constraint(schema, time.monotonic() + 60)
    grammars.close()
    drawn, ids = np.random.default_rng(0), []
    for _ in range(60):
        logits = drawn.normal(size=(1, tokenizer.vocabulary_size)).astype(np.float32)
        logits[0, tokenizer.end_of_text] += 3  # ends as soon as it may
        token = int(constraint.mask(logits).argmax())
        if token == tokenizer.end_of_text:
            break
        constraint.accept(token, left=100)
        ids.append(token)
    assert token == tokenizer.end_of_text
    assert json.loads(tokenizer.decode(ids)).keys() == {"name"}


def test_a_schema_needs_tokens_of_bytes(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    from gptmill.serve.constraint import Grammars

    model = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, LibraryTokenizer)
    with pytest.raises(UserError, match="a format needs a model whose tokens are bytes of text"):
        Grammars(tokenizer)


def test_pretraining_goes_on_with_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    """Saved with the encoded text and opened again it is the same; another is refused."""
    from gptmill.params import load
    from gptmill.weights.foundation import starting_model

    (tmp_path / "tokens").mkdir()
    load_tokenizer(folder).save(tmp_path / "tokens")
    section = load().pretrain
    start = section.foundation.model_copy(update={"source": "folder", "location": str(folder)})
    model = section.model.model_copy(update={"context_length": 16})
    section = section.model_copy(update={"foundation": start, "model": model})
    assert starting_model(section, load_tokenizer(tmp_path / "tokens"))[0].config.width == 32
    other = chat()
    other.add_tokens(["bear"])
    other.save(str(tmp_path / "tokens" / "tokenizer.json"))
    with pytest.raises(UserError, match="another tokenizer"):
        starting_model(section, load_tokenizer(tmp_path / "tokens"))
