"""The stage `tokenize` against one tiktoken thread on the same texts, and its peak memory.

    GPTMILL_MIRROR=../shared/mirror python -m benchmarks.tokenizing --copies 1

The corpus is the profile `library`'s 200 Gutenberg books, fetched as the stage `download` does, and
copies of them in which every letter is another, so that no copy is a duplicate. GPT-2's byte pairs.
Each measurement is a fresh process, taking turns; the best of `--rounds` counts, since neighbors
only add time. `stage` reads, cleans, compares, plans and encodes; `encode` is its encoding and
writing alone. Memory is the peak resident size of the process and, beside it, of its largest
worker.
"""

import argparse
import json
import os
import resource
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gptmill.data.corpus import documents
from gptmill.data.shards import write_tokens
from gptmill.data.splits import plan_splits
from gptmill.data.tokenizers import make_tokenizer
from gptmill.fetch.download import fetch
from gptmill.params import Start

MANIFEST = Path("profiles/manifests/gutenberg.json")
LETTERS = string.ascii_lowercase


def write_books(folder: Path, copies: int) -> None:
    """The books, and copies whose letters are moved on by one, two, … in the alphabet."""
    fetch(MANIFEST, folder)
    for book in sorted(folder.glob("*.txt")):
        text = book.read_text(encoding="utf-8-sig")
        for copy in range(1, copies):
            moved = LETTERS[copy:] + LETTERS[:copy]
            table = str.maketrans(LETTERS, moved)
            (folder / f"{book.stem}-{copy}.txt").write_text(text.translate(table), "utf-8")


def measure(folder: Path, output: Path, workers: int) -> dict[str, float]:
    """One run in this process; of no workers, tiktoken in one thread."""
    tokenizer = make_tokenizer("gpt2", None, 0, Start(source="none", location="", revision=""))
    if not workers:
        texts = [document.text for document in documents(folder)]
        begin = time.perf_counter()
        tokens = sum(len(tokenizer._encoding.encode_ordinary(text)) for text in texts)
        return {"tokens_per_second": tokens / (time.perf_counter() - begin)}
    begin = time.perf_counter()
    with plan_splits(
        folder,
        validation_fraction=0.03,
        test_fraction=0.03,
        seed=1,
        workers=workers,
        beside=output,
    ) as plan:
        planned = time.perf_counter()
        counts = write_tokens(plan, tokenizer, output, shard_tokens=10**7, workers=workers)
    written = time.perf_counter()
    tokens = sum(value for name, value in counts.items() if name.endswith("/tokens"))
    return {
        "tokens": tokens,
        "seconds": written - begin,
        "stage": tokens / (written - begin),
        "encode": tokens / (written - planned),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker_memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def fresh(folder: Path, output: Path, workers: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tokenizing", "--one", str(workers)]
    command += ["--folder", str(folder), "--output", str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=1, help="1 is 47.5 million characters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--one", type=int, help="measure once, print JSON")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.folder, options.output, options.one)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "books"
        write_books(folder, options.copies)
        runs: dict[int, list[dict[str, float]]] = {count: [] for count in [0, *options.workers]}
        for _ in range(options.rounds):
            for count, found in runs.items():
                found.append(fresh(folder, Path(scratch) / "tokens", count))
        peer = max(run["tokens_per_second"] for run in runs.pop(0))
        print(f"one tiktoken thread: {peer / 1e6:.2f} M tokens/s; best of {options.rounds} rounds")
        for count, found in runs.items():
            best = {key: max(run[key] for run in found) for key in ("stage", "encode")}
            memory = max(run["memory"] for run in found), max(run["worker_memory"] for run in found)
            print(
                f"{count} workers: {min(run['seconds'] for run in found):.2f} s, "
                f"{found[0]['tokens'] / 1e6:.1f} M tokens, stage {best['stage'] / peer:.2f} ×, "
                f"encode {best['encode'] / peer:.2f} ×, {memory[0]:.0f} MB, "
                f"each worker {memory[1]:.0f} MB"
            )


if __name__ == "__main__":
    main()
