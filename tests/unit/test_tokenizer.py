"""Every kind of tokenizer: round trips, saved folders, and the Rust library's opinion."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from gptmill.errors import UserError
from gptmill.tokenizer import (
    END_OF_TEXT,
    BytePairTokenizer,
    Tokenizer,
    byte_pairs_from_merges,
    load_gpt2_files,
    load_tokenizer,
    split_words,
    train_byte_pairs,
    train_vocabulary,
)

TEXT = (
    "The quick brown fox jumps over the lazy dog. The dog, quite lazy, doesn't jump -- it sleeps! "
    'In 1923 the café\'s naïve owner said: "Où est le chien?"\n\nThe end.\n'
) * 5
MIRROR = Path("../shared/mirror")


def make(kind: str) -> Tokenizer:
    if kind == "bpe":
        return train_byte_pairs([TEXT], 320)
    return train_vocabulary([TEXT], kind, 100)


@pytest.fixture(scope="module", params=["bpe", "character", "word"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make(request.param)


def test_a_saved_folder_encodes_alike(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    assert loaded.end_of_text == tokenizer.end_of_text
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert loaded.decode(loaded.encode(TEXT)) == tokenizer.decode(tokenizer.encode(TEXT))


def test_the_rust_library_reads_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    fast = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert fast.encode(TEXT).ids == tokenizer.encode(TEXT)
    assert fast.get_vocab_size() == tokenizer.vocabulary_size
    assert fast.token_to_id(END_OF_TEXT) == tokenizer.end_of_text


def test_end_of_text_is_the_largest_id_and_never_made_from_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text == tokenizer.vocabulary_size - 1
    if isinstance(tokenizer, BytePairTokenizer):
        assert tokenizer.end_of_text not in tokenizer.encode(f"a {END_OF_TEXT} b")


@given(st.text())
def test_byte_pairs_keep_any_text(text: str) -> None:
    tokenizer = byte_pairs_from_merges([("t", "h"), ("th", "e"), ("Ġ", "a")])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "the"]) == [tokenizer.encode(text), [257]]


def test_merges_by_hand() -> None:
    tokenizer = byte_pairs_from_merges([("t", "h"), ("th", "e")])
    assert tokenizer.encode("the") == [257]
    assert tokenizer.encode("tht") == [256, tokenizer.encode("t")[0]]


def test_characters_outside_the_vocabulary_are_unknown() -> None:
    tokenizer = make("character")
    ids = tokenizer.encode("dog→dog")
    assert ids[3] == tokenizer.unknown
    assert tokenizer.decode(ids) == "dog<|unk|>dog"


def test_words_by_hand() -> None:
    assert split_words("Hello, world. Is this-- a test?") == [
        "Hello", ",", "world", ".", "Is", "this", "--", "a", "test", "?",
    ]  # fmt: skip
    tokenizer = train_vocabulary(["b a a, b. c"], "word", 6)
    assert tokenizer.vocabulary == [",", ".", "a", "b", "<|unk|>", END_OF_TEXT]
    assert tokenizer.decode(tokenizer.encode("a, c b.")) == "a, <|unk|> b."


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="256 bytes"):
        train_byte_pairs([TEXT], 200)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab\.json does not exist"):
        load_tokenizer(tmp_path)


def test_ids_that_do_not_follow_the_merges_are_refused(tmp_path: Path) -> None:
    make("bpe").save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"!": 0', '"!": 1', 1))
    with pytest.raises(UserError, match="two tokens with the same id"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    text = (tmp_path / "vocab.json").read_text()
    (tmp_path / "vocab.json").write_text(text.replace('"!": 0', '"!": 320', 1))
    with pytest.raises(UserError, match="not a GPT-2 tokenizer"):
        load_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")


@pytest.mark.skipif(not MIRROR.exists(), reason="needs ../shared/mirror: GPT-2's real byte pairs")
def test_gpt2_as_the_book_counts_it() -> None:
    folder = MIRROR / "openaipublic.blob.core.windows.net/gpt-2/encodings/main"
    tokenizer = load_gpt2_files(folder / "encoder.json", folder / "vocab.bpe")
    assert tokenizer.vocabulary_size == 50257
    assert tokenizer.end_of_text == 50256
    assert tokenizer.encode("Akwirw ier") == [33901, 86, 343, 86, 220, 959]
    verdict = next(MIRROR.rglob("the-verdict.txt")).read_text(encoding="utf-8")
    assert len(tokenizer.encode(verdict)) == 5145
