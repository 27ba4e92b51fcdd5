"""Tokenizer folders of others: each shape of file works or is refused, and what is added stays."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from gptmill.errors import UserError
from gptmill.tokenizer import (
    BytePairTokenizer,
    LibraryTokenizer,
    byte_pairs_from_merges,
    load_stop_tokens,
    load_tokenizer,
    train_byte_pairs,
    train_vocabulary,
)

TEXT = "the quick brown fox jumps over the lazy dog " * 20
PUBLISHED = Path("../shared/mirror/huggingface.co/openai-community/gpt2/resolve")
PUBLISHED /= "607a30d783dfa663caf39e06633721c8d4cfcd7e"
VALUES = [
    None, True, -1, 10**30, 1.5, "", "x", "é", [], [None], [1], ["a"], ["a b"], [["a", "b"]],
    [["a", "b", "c"]], [["a", 1.0]], {}, {"a": None}, {"a": -1}, {"é": 1}, {"type": "x"},
]  # fmt: skip


def chat() -> dict[str, Any]:
    """A byte-level `tokenizer.json` with an end of turn after the vocabulary."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
    )
    fast.train_from_iterator([TEXT], trainer)
    fast.add_special_tokens(["<|im_end|>"])
    fast.add_tokens([AddedToken("wolf")])
    return json.loads(fast.to_str())


def unigram() -> dict[str, Any]:
    fast = FastTokenizer(models.Unigram())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["</s>", "<unk>"], unk_token="<unk>"
    )
    fast.train_from_iterator([TEXT], trainer)
    return json.loads(fast.to_str())


def prefixed() -> dict[str, Any]:
    """Characters that go on a word carry a prefix, which its merges leave out."""
    model = {"type": "BPE", "unk_token": "?", "continuing_subword_prefix": "##"}
    model |= {"vocab": {"?": 0, "é": 1, "##é": 2, "éé": 3, "</s>": 4}, "merges": [["é", "##é"]]}
    return {"version": "1.0", "added_tokens": [], "model": model}


def changed(fast: dict[str, Any]) -> Iterator[Any]:
    """Files with one value of another type, or without it, at every depth."""
    for value in VALUES:
        yield value
        for key in fast:
            yield fast | {key: value}
        for key in [*fast["model"], "unk_id", "byte_fallback", "continuing_subword_prefix"]:
            yield fast | {"model": fast["model"] | {key: value}}
        for key in ("id", "content", "special", "lstrip"):
            yield fast | {"added_tokens": [*fast["added_tokens"][:1], {"content": "q", key: value}]}
        nested = dict.fromkeys(("pretokenizers", "decoders", "normalizers"), value)
        for key in ("pre_tokenizer", "decoder", "normalizer"):
            yield fast | {key: {"type": "Sequence", **nested}}
    for key in fast:
        yield {other: value for other, value in fast.items() if other != key}
    for key in fast["model"]:
        rest = {other: value for other, value in fast["model"].items() if other != key}
        yield fast | {"model": rest}


def works_or_is_refused(folder: Path) -> None:
    try:
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode("the <|im_end|> wölf\n"))
    except UserError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize("make", [chat, unigram, prefixed])
def test_every_shape_of_a_tokenizer_file(make, tmp_path: Path) -> None:
    for value in changed(make()):
        (tmp_path / "tokenizer.json").write_text(json.dumps(value))
        works_or_is_refused(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\0",
        "[" * 100_000,
        '{"model":' * 100_000,
        '{"model": {"vocab": {"a": %s}}}' % ("9" * 9000),
    ],
    ids=["empty", "open", "nul", "lists", "objects", "digits"],
)
def test_what_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid JSON"):
        load_tokenizer(tmp_path)


NAMES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
    "generation_config.json",
)
KEYS = (
    "eos_token", "pad_token", "added_tokens_decoder", "extra_special_tokens", "tokenizer_class",
    "model_type", "eos_token_id", "chat_template", "add_prefix_space", "split_special_tokens",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_of_the_files_beside_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(chat()))
    for value in [*VALUES, *({key: value} for key in KEYS for value in VALUES)]:
        (tmp_path / name).write_text(json.dumps(value))
        works_or_is_refused(tmp_path)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="needs ../shared/mirror: GPT-2's own files")
def test_the_published_gpt2() -> None:
    """Its `tokenizer.json` is from before models named their type."""
    assert "type" not in json.loads((PUBLISHED / "tokenizer.json").read_text())["model"]
    tokenizer = load_tokenizer(PUBLISHED)
    assert isinstance(tokenizer, BytePairTokenizer)
    assert (tokenizer.vocabulary_size, tokenizer.end_of_text) == (50257, 50256)
    assert tokenizer.encode("Akwirw ier") == [33901, 86, 343, 86, 220, 959]
    assert load_stop_tokens(PUBLISHED) == [50256]


def test_tiktoken_only_where_it_is_the_same(tmp_path: Path) -> None:
    """Merging by bytes makes `abc` of `ab` and `c`; this list has only `a` and `bc` for it."""
    for merges, kind, ids in (
        ([("a", "b"), ("b", "c"), ("a", "bc")], LibraryTokenizer, [256, 66]),
        ([("b", "c"), ("a", "b"), ("a", "bc")], BytePairTokenizer, [258]),
    ):
        byte_pairs_from_merges(merges).save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert type(loaded) is kind
        assert loaded.encode("abc") == ids
        assert FastTokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("abc").ids == ids


def test_words_of_others_are_not_taken_for_ours(tmp_path: Path) -> None:
    ours = train_vocabulary([TEXT], "word", 30)
    ours.save(tmp_path)
    assert type(load_tokenizer(tmp_path)) is type(ours)
    fast = ours.fast_json() | {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast))
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, LibraryTokenizer)
    assert loaded.encode("The FOX") == ours.encode("the fox")


def test_an_added_end_of_turn_is_kept(tmp_path: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    config |= {"bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(chat()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    end = tokenizer.end_of_text
    assert end == tokenizer.vocabulary_size - 2
    assert (tokenizer.beginning_of_text, tokenizer.padding) == (0, 0)
    assert tokenizer.encode("a wolf") == [*tokenizer.encode("a "), end + 1]
    assert end not in tokenizer.encode("a<|im_end|>b")
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b")) == "a<|im_end|>b"
    assert tokenizer.encode("<|endoftext|>") == [0], "it begins a text here, and does not end one"
    assert tokenizer.encode("a\ud800") == tokenizer.encode("a\ufffd")


@pytest.mark.parametrize(
    ("beside", "content", "end"),
    [
        ({}, "</s>", 2),
        ({"config.json": {"eos_token_id": 1}}, "</s>", 1),
        ({"generation_config.json": {"eos_token_id": [2, 0]}}, "x", 2),
        ({"config.json": {"eos_token_id": 10**9}}, "</s>", 2),
        ({"config.json": {"eos_token_id": None}}, "x", None),
    ],
)  # fmt: skip
def test_where_the_end_of_text_stands(
    beside: dict, content: str, end: int | None, tmp_path: Path
) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1, content: 2}, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    for name, values in beside.items():
        (tmp_path / name).write_text(json.dumps(values))
    if end is not None:
        assert load_tokenizer(tmp_path).end_of_text == end
        return
    with pytest.raises(UserError, match="names no token that ends a text: set eos_token"):
        load_tokenizer(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UserError, match=r"its tokenizer as tokenizer\.model .*save_pretrained"):
        load_tokenizer(tmp_path)
    train_byte_pairs([TEXT], 280).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.Y"}}')
    with pytest.raises(UserError, match="names code to run"):
        load_tokenizer(tmp_path)


def test_a_text_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(UserError, match=r"tokenizer\.json cannot encode this text"):
        load_tokenizer(tmp_path).encode("b")


@pytest.mark.parametrize(
    ("generation", "config", "stops"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 4}, [3]),
        ({"eos_token_id": [3, 5]}, {"eos_token_id": 4}, [3, 5]),
        ({}, {"eos_token_id": 4}, [4]),
        ({"eos_token_id": None}, {"eos_token_id": [4]}, [4]),
        (None, {"eos_token_id": 4}, [4]),
        (None, {}, []),
        (None, None, []),
    ],
)
def test_stop_tokens(generation: dict, config: dict, stops: list[int], tmp_path: Path) -> None:
    for name, values in (("generation_config.json", generation), ("config.json", config)):
        if values is not None:
            (tmp_path / name).write_text(json.dumps(values))
    assert load_stop_tokens(tmp_path) == stops


@pytest.mark.parametrize("value", ["3", -1, 1.5, True, [3, None], {}])
def test_stop_tokens_that_are_none(value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match="not ids of tokens"):
        load_stop_tokens(tmp_path)
