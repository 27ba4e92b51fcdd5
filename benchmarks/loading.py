"""Load a GPT-2 folder with gptmill and with transformers: seconds, and peak memory over the file.

    python -m benchmarks.loading --size 124M

Each load runs in a fresh process on random weights of the real shapes, taking turns, after the
imports. `load` is the call alone; `ready` adds one pass over all weights, because a library may
leave the reading of a mapped file to the first use. Memory is the peak resident size (VmHWM) less
the resident size before the call, over the size of the file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gptmill.model.config import GPT2_SIZES, gpt2_config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import byte_pairs_from_merges
from gptmill.weights.folder import load_language_model, save_model
from gptmill.weights.safetensors import SINGLE

LIBRARIES = ("gptmill", "transformers")


def loader(library: str) -> Callable[[Path], torch.nn.Module]:
    """The call to measure, its module imported."""
    if library == "gptmill":
        return load_language_model
    import transformers

    transformers.logging.disable_progress_bar()
    return transformers.GPT2LMHeadModel.from_pretrained


def memory(key: str) -> int:
    """Bytes of `VmRSS` or `VmHWM` of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(library: str, folder: Path, threads: int) -> dict[str, float]:
    """One load in this process."""
    torch.set_num_threads(threads)
    load = loader(library)
    before = memory("VmRSS")
    start = time.perf_counter()
    model = load(folder)
    loaded = time.perf_counter()
    with torch.no_grad():
        sum(float(parameter.sum()) for parameter in model.parameters())
    ready = time.perf_counter()
    peak = memory("VmHWM") - before
    size = (folder / SINGLE).stat().st_size
    return {"load": loaded - start, "ready": ready - start, "memory": peak / size}


def compare(folder: Path, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """Medians of `repeats` loads by each library, taking turns."""
    runs: dict[str, list[dict[str, float]]] = {library: [] for library in LIBRARIES}
    for _ in range(repeats):
        for library in LIBRARIES:
            command = [sys.executable, "-m", "benchmarks.loading", "--one", library]
            command += ["--folder", str(folder), "--threads", str(threads)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[library].append(json.loads(result.stdout))
    return {
        library: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for library, found in runs.items()
    }


def write_random(folder: Path, size: str) -> None:
    """A model folder of random weights in the shapes of an OpenAI size."""
    tokenizer = byte_pairs_from_merges([])
    save_model(folder, GPT2(gpt2_config(size)), tokenizer, provenance={"weights": "random"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(GPT2_SIZES), default="124M")
    parser.add_argument("--folder", type=Path, help="a model folder instead of random weights")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", choices=LIBRARIES, help="load once, print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.folder, options.threads)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / options.size
        if options.folder is None:
            write_random(folder, options.size)
        size = (folder / SINGLE).stat().st_size
        print(
            f"{folder.name}: {size:,} bytes, {options.threads} threads, median of {options.repeats}"
        )
        print(f"{'':14}{'load s':>8}{'ready s':>9}{'peak / file':>13}")
        for library, row in compare(folder, options.repeats, options.threads).items():
            print(f"{library:14}{row['load']:8.2f}{row['ready']:9.2f}{row['memory']:13.2f}")


if __name__ == "__main__":
    main()
