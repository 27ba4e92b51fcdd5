"""Folders of every kind of tokenizer against `transformers.AutoTokenizer`: ids, text, streams, and
the same again after saving."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from gptmill.generate.text import TextStream
from gptmill.tokenizer import BytePairTokenizer, LibraryTokenizer, Tokenizer, load_tokenizer

EOT = "<|endoftext|>"
TEXTS = [
    "The quick brown fox jumps over the lazy dog. 1923 café naïve, Où est-ce? don't it's 'quoted' "
    "end.\n\n  Spaced   out\ttabs; 12345 and 678.",
    "hello world, I'm here; we've n't",
] * 20
PROBES = [
    "Hello world", "  two  spaces", "The quick brown fox 12345 don't stop. Isn't it , well ?",
    "naïve café 🎉 ﬁ Ⅷ 中文", "", " ", "\n\n", "a <|im_start|> b foxy foxyéé x", "<s>hi <pad>",
    "THE LAZY Dog", "[CLS] it's [PAD]", "tab\tx 678", "e\u0301 ' ' n't . , !",
]  # fmt: skip
FAST, GPT2 = "PreTrainedTokenizerFast", "GPT2Tokenizer"


def byte_pairs(
    rules: object = None, normalizer: object = None, special: tuple[str, ...] = ()
) -> FastTokenizer:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = rules or pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    if normalizer:
        fast.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return train(fast, trainers.BpeTrainer, special, vocab_size=330, initial_alphabet=alphabet)


def train(fast: FastTokenizer, trainer: type, special: tuple[str, ...], **options) -> FastTokenizer:
    made = trainer(special_tokens=list(special), show_progress=False, **options)
    fast.train_from_iterator(TEXTS, made)
    return fast


def with_end(fast: FastTokenizer) -> FastTokenizer:
    fast.add_special_tokens([EOT])
    return fast


def plain() -> FastTokenizer:
    return with_end(byte_pairs())


def prefixed() -> FastTokenizer:
    return with_end(byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=True)))


def digits() -> FastTokenizer:
    single = pre_tokenizers.Digits(individual_digits=True)
    return with_end(
        byte_pairs(
            pre_tokenizers.Sequence([single, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        )
    )


def other_pattern() -> FastTokenizer:
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\s\p{N}]+|\s+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return with_end(byte_pairs(pre_tokenizers.Sequence([split, byte_level])))


def normalized() -> FastTokenizer:
    both = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return with_end(byte_pairs(normalizer=both))


def special_first() -> FastTokenizer:
    return byte_pairs(special=("<s>", "<pad>", "</s>", "<unk>"))


def chat() -> FastTokenizer:
    fast = byte_pairs(special=(EOT,))
    fast.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast.add_tokens([AddedToken("foxy", lstrip=True), AddedToken("éé", normalized=False)])
    return fast


def unigram() -> FastTokenizer:
    fast = FastTokenizer(models.Unigram())
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    fast.normalizer = normalizers.Sequence([normalizers.NFKC(), spaces])
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ("<s>", "</s>", "<unk>")
    return train(fast, trainers.UnigramTrainer, special, vocab_size=120, unk_token="<unk>")


def sentencepiece() -> FastTokenizer:
    """As Llama's: byte pairs of characters, with bytes for what the vocabulary lacks."""
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    fast = FastTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ("<unk>", "<s>", "</s>")
    train(fast, trainers.BpeTrainer, (*special, *octets), vocab_size=400)
    written = json.loads(fast.to_str())
    written["added_tokens"] = [a for a in written["added_tokens"] if a["content"] in special]
    fast = FastTokenizer.from_str(json.dumps(written))
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return fast


def words() -> FastTokenizer:
    fast = FastTokenizer(models.WordLevel(unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    return train(fast, trainers.WordLevelTrainer, ("[UNK]", "[EOS]"))


def word_pieces() -> FastTokenizer:
    fast = FastTokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    train(fast, trainers.WordPieceTrainer, special, vocab_size=120)
    fast.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return fast


FIRST = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT = {"eos_token": "<|im_end|>", "bos_token": EOT, "pad_token": EOT}
BERT = {"eos_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
CLEAN = {"clean_up_tokenization_spaces": True}
PADDING = {"__type": "AddedToken", "content": "[PAD]", "lstrip": True, "special": True}
KINDS = [
    (plain, {"tokenizer_class": FAST, "eos_token": EOT}),
    (plain, None),
    (plain, {"tokenizer_class": GPT2, **CLEAN}),
    (plain, {"tokenizer_class": GPT2, "pad_token": "[PAD]", "extra_special_tokens": ["<new>"]}),
    (plain, {"tokenizer_class": GPT2, "pad_token": PADDING}),
    (plain, {"tokenizer_class": FAST, "eos_token": "</s>"}),
    (prefixed, {"tokenizer_class": FAST, "eos_token": EOT}),
    (prefixed, {"tokenizer_class": GPT2, "add_prefix_space": True}),
    (digits, {"tokenizer_class": FAST, "eos_token": EOT}),
    (digits, None),
    (other_pattern, {"tokenizer_class": FAST, "eos_token": EOT}),
    (normalized, {"tokenizer_class": FAST, "eos_token": EOT}),
    (normalized, {"tokenizer_class": GPT2}),
    (special_first, {"tokenizer_class": FAST, **FIRST, "pad_token": "<pad>"}),
    (special_first, {"tokenizer_class": GPT2, **FIRST, "pad_token": "<pad>"}),
    (chat, {"tokenizer_class": FAST, **CHAT}),
    (chat, {"tokenizer_class": GPT2, **CHAT, "chat_template": "{{ messages }}"}),
    (chat, None),
    (unigram, {"tokenizer_class": FAST, **FIRST}),
    (sentencepiece, {"tokenizer_class": FAST, **FIRST}),
    (words, {"tokenizer_class": FAST, "eos_token": "[EOS]", "unk_token": "[UNK]", **CLEAN}),
    (word_pieces, {"tokenizer_class": FAST, **BERT}),
    (word_pieces, {"tokenizer_class": FAST, **BERT, **CLEAN}),
]


def write(folder: Path, fast: FastTokenizer, config: dict | None) -> Path:
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 600}))
    return folder


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = TextStream(tokenizer)
    return "".join(stream.push(id) for id in ids) + stream.finish()


def assert_equal(folder: Path) -> Tokenizer:
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert (ours.vocabulary_size, ours.end_of_text) == (len(theirs), theirs.eos_token_id)
    end = ours.decode([ours.end_of_text])
    for text in PROBES:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids), text
        # What ends a text is never made of one, whatever it looks like.
        if isinstance(ours, BytePairTokenizer) or ours.json["model"]["type"] == "BPE":
            assert ours.end_of_text not in ours.encode(f"{text}{end}{text}")
    assert ours.encode_batch(PROBES) == [ours.encode(text) for text in PROBES]
    drawn = random.Random(0)
    for _ in range(100):
        ids = [drawn.randrange(ours.vocabulary_size) for _ in range(drawn.randrange(1, 12))]
        assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids), ids
        assert ours.decode_bytes(ids).decode(errors="replace") == theirs.decode(ids), ids
    return ours


@pytest.mark.parametrize(
    ("make", "config"), KINDS, ids=[f"{make.__name__}-{config}"[:60] for make, config in KINDS]
)
def test_ids_text_and_streams_equal_transformers(
    make: Callable[[], FastTokenizer], config: dict | None, tmp_path: Path
) -> None:
    ours = assert_equal(write(tmp_path / "theirs", make(), config))
    again = tmp_path / "again"
    again.mkdir()
    ours.save(again)
    (again / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 600}))
    saved = assert_equal(again)
    assert type(saved) is type(ours) and saved.identity == ours.identity
    if config and "chat_template" in config:
        assert AutoTokenizer.from_pretrained(again).chat_template == config["chat_template"]


@pytest.mark.parametrize("added", [{}, {"<|im_end|>": 330, " wide space": 331, "zz": 332}])
def test_files_from_before_tokenizer_json(added: dict[str, int], tmp_path: Path) -> None:
    """`vocab.json` and `merges.txt`, with `added_tokens.json` and `special_tokens_map.json`."""
    written = json.loads(plain().to_str())["model"]
    end = {EOT: len(written["vocab"])}
    merges = [" ".join(pair) for pair in written["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(written["vocab"] | end))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 600}))
    if added:
        added = {token: len(written["vocab"]) + 1 + at for at, token in enumerate(added)}
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
        special = {"eos_token": {"content": "<|im_end|>", "normalized": False}}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    ours = assert_equal(tmp_path)
    assert isinstance(ours, LibraryTokenizer if added else BytePairTokenizer)
    assert ours.end_of_text == (added or end).get("<|im_end|>", end[EOT])
