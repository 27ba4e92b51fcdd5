"""Shards against a plain encoding, windows against a plain loop, resumption bit for bit."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptmill.data import corpus as module
from gptmill.data.corpus import SPLITS
from gptmill.data.shards import write_tokens
from gptmill.data.splits import plan_splits, split_documents
from gptmill.data.tokens import TokenSplit, WindowSampler, sliding_windows
from gptmill.errors import UserError
from gptmill.files import sha256_tree
from gptmill.tokenizer import load_tokenizer, train_byte_pairs, train_vocabulary
from tests.support.unsealed import unsealed


def write_corpus(folder, count: int, nats: bool = True):
    chance = random.Random(5)
    lines = []
    for number in range(count):
        text = " ".join(chance.choice(["dog", "cät", "ran", "far"]) for _ in range(20))
        value = {"id": f"{number:03d}", "text": f"{number} {text}", "nats": None}
        if nats:
            value["nats"] = 0.1 * number
        lines.append(json.dumps(value) + "\n")
    folder.mkdir()
    (folder / "documents.jsonl").write_text("".join(lines))
    return folder


def plan_of(corpus, validation=0.1, test=0.1):
    return plan_splits(corpus, validation_fraction=validation, test_fraction=test, seed=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    corpus = write_corpus(folder / "raw", 50)
    plan = plan_of(corpus)
    tokenizer = train_byte_pairs(["dog cat ran far dog cat ran far"], 270)
    metrics = write_tokens(plan, tokenizer, folder / "out", shard_tokens=300)
    return corpus, plan, tokenizer, folder / "out", metrics


def everything(split: TokenSplit) -> list[int]:
    return split.gather(np.array([0]), len(split))[0].tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_shards_hold_every_document_and_its_end(written, split):
    _, plan, tokenizer, folder, metrics = written
    texts = [document.text for document in split_documents(plan, split)]
    expected, starts = [], []
    for text in texts:
        starts.append(len(expected))
        expected += [*tokenizer.encode(text), tokenizer.end_of_text]
    opened = TokenSplit(folder, split)
    assert everything(opened) == expected
    assert opened.document_starts.tolist() == starts
    assert opened.document_bytes.tolist() == [len(text.encode()) for text in texts]
    assert metrics[f"{split}/tokens"] == len(opened) == opened.tokens == len(expected)
    assert metrics[f"{split}/documents"] == opened.documents == len(texts)
    assert metrics[f"{split}/bytes"] == opened.bytes == sum(len(t.encode()) for t in texts)
    assert metrics[f"{split}/words"] == opened.words == 21 * len(texts)
    numbers = [int(text.split()[0]) for text in texts]
    assert metrics[f"{split}/nats"] == opened.nats == pytest.approx(0.1 * sum(numbers))


def test_the_index_names_the_tokenizer_and_the_shards(written):
    _, _, tokenizer, folder, _ = written
    index = json.loads((folder / "index.json").read_text())
    assert index["tokenizer"] == sha256_tree(folder / "tokenizer")
    assert load_tokenizer(folder / "tokenizer").encode("dog ran") == tokenizer.encode("dog ran")
    assert index["dtype"] == "uint16"
    shards = index["splits"]["train"]["shards"]
    assert len(shards) > 3
    assert {shard["tokens"] for shard in shards[:-1]} == {300}
    assert (folder / "train" / shards[0]["name"]).stat().st_size == 600


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_small_batches_and_any_number_of_workers_write_the_same_bytes(
    written, tmp_path, monkeypatch, workers
):
    corpus, _, tokenizer, folder, _ = written
    monkeypatch.setattr(module, "BATCH_BYTES", 100)
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.1}
    out = tmp_path / "out"
    with plan_splits(corpus, **fractions, seed=3, workers=workers, beside=out) as plan:
        assert plan.spool.batches > 20
        write_tokens(plan, tokenizer, out, shard_tokens=300, workers=workers)
    assert sha256_tree(out) == sha256_tree(folder)
    assert list(tmp_path.iterdir()) == [out]


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    corpus = write_corpus(tmp_path / "raw", 3)
    characters = "".join(chr(code) for code in range(0x10000, 0x10000 + 70000))
    tokenizer = train_vocabulary([characters + "dogcätrnf 0123456789"], "character", 80000)
    write_tokens(plan_of(corpus), tokenizer, tmp_path / "out", shard_tokens=100)
    assert json.loads((tmp_path / "out" / "index.json").read_text())["dtype"] == "uint32"
    split = TokenSplit(tmp_path / "out", "train")
    text = next(split_documents(plan_of(corpus), "train")).text
    assert everything(split) == [*tokenizer.encode(text), tokenizer.end_of_text]
    assert split.end_of_text == tokenizer.end_of_text


def test_a_cut_document_ends_once(tmp_path):
    corpus = write_corpus(tmp_path / "raw", 1, nats=False)
    tokenizer = train_byte_pairs(["dog"], 258)
    plan = plan_of(corpus, test=0.0)
    metrics = write_tokens(plan, tokenizer, tmp_path / "out", shard_tokens=10**6)
    pieces = [everything(TokenSplit(tmp_path / "out", name)) for name in SPLITS[:2]]
    text = json.loads((corpus / "documents.jsonl").read_text())["text"]
    assert tokenizer.decode(pieces[0] + pieces[1][:-1]) == text
    assert pieces[1][-1] == tokenizer.end_of_text not in pieces[0]
    assert "train/nats" not in metrics
    assert TokenSplit(tmp_path / "out", "validation").nats is None
    assert len(TokenSplit(tmp_path / "out", "test")) == 0


def test_a_validation_file_that_repeats_the_training_file_leaves_nothing(tmp_path):
    (tmp_path / "corpus").mkdir()
    lines = [{"id": name, "text": "The same text. " * 9, "nats": None, "split": name}
             for name in ("train", "validation")]  # fmt: skip
    (tmp_path / "corpus/documents.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = plan_splits(tmp_path / "corpus", validation_fraction=0.1, test_fraction=0.0, seed=1)
    tokenizer = train_vocabulary(["The same text. "], "character", 100)
    with pytest.raises(UserError, match=r"no text is left to train on .*1 exact duplicate"):
        write_tokens(plan, tokenizer, tmp_path / "t", shard_tokens=99)
    assert not (tmp_path / "t").exists()


def test_gather_across_shards_equals_a_loop(written):
    split = TokenSplit(written[3], "train")
    ids = everything(split)
    starts = np.array([0, 299, 250, 597, len(ids) - 40])
    found = split.gather(starts, 40)
    assert found.dtype == np.int64
    assert found.tolist() == [ids[start : start + 40] for start in starts]


@pytest.mark.parametrize("start", [-1, 10**6])
def test_a_window_outside_the_split_is_an_error(written, start):
    with pytest.raises(IndexError):
        TokenSplit(written[3], "train").gather(np.array([start]), 2)


def test_a_damaged_folder_is_told(written, tmp_path):
    _, plan, tokenizer, _, _ = written
    write_tokens(plan, tokenizer, tmp_path / "out", shard_tokens=300)
    with pytest.raises(UserError, match="no split 'dev', only train, validation, test"):
        TokenSplit(tmp_path / "out", "dev")
    shard = tmp_path / "out" / "train" / "00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"00001\.bin has other bytes than were written"):
        TokenSplit(tmp_path / "out", "train")
    TokenSplit(tmp_path / "out", "validation")  # whose files are whole
    unsealed(tmp_path / "out")
    with pytest.raises(UserError, match=r"00001\.bin has 598 bytes and the index says 600"):
        TokenSplit(tmp_path / "out", "train")


def test_a_failure_leaves_the_earlier_folder(written, tmp_path, monkeypatch):
    _, plan, tokenizer, _, _ = written
    write_tokens(plan, tokenizer, tmp_path / "out", shard_tokens=300)
    before = sha256_tree(tmp_path / "out")

    def fail(texts):
        raise UserError("it fails")

    monkeypatch.setattr(tokenizer, "encode_arrays", fail)
    with pytest.raises(UserError, match="it fails"):
        write_tokens(plan, tokenizer, tmp_path / "out", shard_tokens=300)
    assert sha256_tree(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_line_is_told_by_its_number_and_leaves_nothing(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(module, "BATCH_BYTES", 100)
    corpus = write_corpus(tmp_path / "raw", 50)
    lines = (corpus / "documents.jsonl").read_text().splitlines()
    (corpus / "documents.jsonl").write_text("\n".join([*lines[:30], "{}", *lines[30:]]))
    with pytest.raises(UserError, match="line 31 is not a document"):
        plan_splits(corpus, validation_fraction=0.1, test_fraction=0.1, seed=3, workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


# --- Sampling


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    before=st.integers(0, 12),
    after=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_n_and_m_batches_are_n_a_stop_and_m(written, length, batch_size, before, after, seed):
    split = TokenSplit(written[3], "train")
    whole = WindowSampler(split, batch_size, length, seed)
    for _ in range(before):
        whole.next_batch()
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = WindowSampler(split, batch_size, length, seed)
    resumed.load_state_dict(state)
    for _ in range(after):
        for expected, found in zip(whole.next_batch(), resumed.next_batch(), strict=True):
            assert expected.shape == (batch_size, length)
            assert (expected == found).all()


class Counting:
    """A split whose tokens are their own positions."""

    split = "train"

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return self.tokens

    def at(self, positions: np.ndarray) -> np.ndarray:
        return positions


@settings(max_examples=50, deadline=None)
@given(tokens=st.integers(8, 200), length=st.integers(1, 7), seed=st.integers(0, 5))
def test_an_epoch_shows_every_token_once(tokens, length, seed):
    sampler = WindowSampler(Counting(tokens), 1, length, seed)
    for epoch in range(3):
        assert sampler.epoch == epoch
        inputs, targets = zip(
            *(sampler.next_batch() for _ in range(sampler.windows_per_epoch)), strict=True
        )
        shown = np.concatenate(inputs).ravel()
        assert len(set(shown.tolist())) == len(shown) > tokens - length
        assert (np.concatenate(targets).ravel() == (shown + 1) % tokens).all()


def test_epochs_differ_and_batches_span_them():
    sampler = WindowSampler(Counting(103), 4, 10, seed=1)
    batches = [sampler.next_batch()[0] for _ in range(5)]  # two epochs of ten windows
    starts = np.concatenate(batches)[:, 0]
    assert len(set(starts[:10].tolist())) == len(set(starts[10:].tolist())) == 10
    assert set(starts[:10] % 103) != set(starts[10:] % 103)
    assert sampler.state_dict() == {"epoch": 2, "cursor": 0}


def test_a_split_shorter_than_a_window_is_told():
    with pytest.raises(UserError, match=r"10 tokens, too few for one window of 10"):
        WindowSampler(Counting(10), 1, 10, seed=0)
    WindowSampler(Counting(11), 1, 10, seed=0).next_batch()


# --- The book's windows


@pytest.mark.parametrize(("max_length", "stride"), [(4, 1), (4, 4), (3, 5), (10, 1)])
def test_sliding_windows_are_the_books_loop(max_length, stride):
    ids = list(range(100, 111))
    inputs, targets = sliding_windows(np.array(ids), max_length, stride)
    starts = range(0, len(ids) - max_length, stride)
    assert inputs.tolist() == [ids[i : i + max_length] for i in starts]
    assert targets.tolist() == [ids[i + 1 : i + max_length + 1] for i in starts]


@pytest.mark.parametrize(("max_length", "stride"), [(0, 1), (4, 0), (11, 1)])
def test_sliding_windows_refuse_nonsense(max_length, stride):
    with pytest.raises(ValueError):
        sliding_windows(np.arange(11), max_length, stride)
