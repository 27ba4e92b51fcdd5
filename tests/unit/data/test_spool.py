"""A corpus read once, by any number of workers, in memory that does not grow with it."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from gptmill.data import corpus as module
from gptmill.data.cleaning import clean_gutenberg
from gptmill.data.corpus import documents
from gptmill.data.fingerprint import WINDOW, fingerprint
from gptmill.data.spool import read_corpus

# --- Fingerprints


def test_a_fingerprint_counts_and_tells_words_as_python_does():
    texts = ["", " \n", "One two, three.", "Straße  STRASSE\u00a0x\u2003y\x1cz", "a" * 30]
    texts += [
        "\U0001d4d0bc _d 4½\u0663",
        "日本語 text",
        "word " * 40_000,
        "x" * (WINDOW + 9) + " y",
    ]
    for text in texts:
        found = fingerprint(text)
        assert found.words == len(text.split())
        assert (found.digest == 0) == (not text.split())
        respaced = "\t\n".join(text.upper().split())
        assert fingerprint(respaced).digest == found.digest
        changed = fingerprint(text + " more").digest
        assert changed != found.digest


def test_shingles_are_those_of_python_sets():
    """As many as different runs of 8 words, and shared as these are."""
    chance = random.Random(3)
    first = [f"Wörd{chance.randrange(50)}" for _ in range(3000)]
    second = first[500:900] + [f"other{chance.randrange(50)}" for _ in range(600)]
    runs = [{tuple(text[i : i + 8]) for i in range(len(text) - 7)} for text in (first, second)]
    joins = (", ".join(first), " — ".join(second).upper())
    shingles = [fingerprint(text).shingles for text in joins]
    assert [len(found) for found in shingles] == [len(found) for found in runs]
    assert len(np.intersect1d(*shingles)) == len(runs[0] & runs[1])
    sampled = fingerprint(joins[0], modulus=4).shingles
    assert (sampled == shingles[0][shingles[0] % np.uint64(4) == 0]).all()


# --- Reading


def write_words(path, size: int, seed: int = 1):
    """Documents of random words as lines of JSON, `size` characters in all."""
    chance = np.random.default_rng(seed)
    path.mkdir()
    with (path / "documents.jsonl").open("w") as file:
        for number in range(size // 5000):
            words = chance.integers(0, 1 << 20, 700)
            text = " ".join(f"{word:06x}" for word in words)[:5000]
            file.write(json.dumps({"id": f"{number}", "text": text, "nats": None}) + "\n")
    return path


def test_a_corpus_is_read_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "clean_gutenberg", lambda text: calls.append(text) or text)
    corpus = write_words(tmp_path / "raw", 50_000)
    spool, _ = read_corpus(corpus, 1, 1, tmp_path / "out")
    assert len(calls) == len(spool) == 10
    assert [document for _, document in spool.documents()] == list(documents(corpus))
    assert len(calls) == 20
    assert [spool.id(number) for number in (0, 9)] == ["0", "9"]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_of_text_files_are_read_in_order(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(module, "BATCH_BYTES", 30)
    texts = {f"{number:02d}": f"text {number} " * number for number in range(12)}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    spool, _ = read_corpus(tmp_path, 1, workers, tmp_path / "out")
    assert {document.id: document.text for _, document in spool.documents()} == texts
    assert 4 < spool.batches < 12
    folder = spool.folder
    assert folder.exists()
    del spool
    assert not folder.exists()


# --- Memory

RUN = """
import json, resource, sys
from pathlib import Path
from gptmill.data import duplicates
duplicates.Sketches.__init__.__defaults__ = (1 << 14, 0)
duplicates.PLACE_BITS = 16
from gptmill.data.shards import write_tokens
from gptmill.data.splits import plan_splits
from gptmill.tokenizer import train_byte_pairs
corpus, output = map(Path, sys.argv[1:])
with plan_splits(corpus, validation_fraction=0.1, test_fraction=0.1, seed=1, workers=2,
                 beside=output) as plan:
    tokenizer = train_byte_pairs(["00 01"], 257)
    counts = write_tokens(plan, tokenizer, output, shard_tokens=10**6, workers=2)
peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in
         (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([counts["train/tokens"], *peaks]))
"""


def test_ten_times_the_corpus_takes_no_more_memory(tmp_path):
    """A token is a byte here: 30 million of them would be 60 MB as shards have them."""
    found = {}
    for size in (3_000_000, 30_000_000):
        corpus = write_words(tmp_path / str(size), size)
        command = [sys.executable, "-c", RUN, str(corpus), str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[size] = json.loads(done.stdout.splitlines()[-1])
    (few, *small), (many, *large) = found.values()
    assert many == pytest.approx(10 * few, rel=0.02)
    for before, after in zip(small, large):
        assert after < before + 20


# --- Cleaning


def test_what_a_search_for_words_finds_is_what_the_pattern_finds():
    """`İ` has two characters in lower case, and must not shift what follows."""
    head = "*** START OF THE PROJECT GUTENBERG EBOOK İİİ ***\n"
    text = head + "İ said so.\n\nA tale.\n\n[Illustration: İ]\n\nThe end.\n"
    text += "*** END OF THE PROJECT GUTENBERG EBOOK ***\nlicense\n"
    assert clean_gutenberg(text) == "İ said so.\n\nA tale.\n\nThe end.\n"
