"""Tiny Shakespeare by characters: profile `shakespeare` against nanoGPT's own code, in one run.

    GPTMILL_NANOGPT=<a checkout of nanoGPT> GPTMILL_MIRROR=... python -m benchmarks.shakespeare

Both start as processes of their own and are timed from there to trained and saved weights, in
alternation. Ours is `python -m stages.pretrain`, tracking, samples and final evaluation included;
nanoGPT's is the command that its readme gives for a CPU, in a copy of the checkout. Losses are in
nats a character over the whole validation split, the same text for both, in windows of 64 side by
side: of our finished model and of nanoGPT's last checkpoint, which it writes when validation is
better.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gptmill.files import read_json
from gptmill.weights.folder import load_language_model

import torch  # isort: skip
from torch.nn import functional as F  # isort: skip

CONTEXT = 64
RECIPE = [
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20",
    "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4",
    "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0",
]  # fmt: skip


@torch.no_grad()
def loss_over_the_split(logits: Callable[[torch.Tensor], torch.Tensor], ids: np.ndarray) -> float:
    """Every character but the first and the last few is a target once.

    Args:
        logits: of ids [B, T], [B, T, V].
    """
    count = (len(ids) - 1) // CONTEXT
    inputs, targets = (
        torch.from_numpy(ids[o : o + count * CONTEXT].astype(np.int64)).view(count, CONTEXT)
        for o in (0, 1)
    )
    total = sum(
        F.cross_entropy(logits(x).flatten(0, 1), y.flatten(), reduction="sum").item()
        for x, y in zip(inputs.split(128), targets.split(128))
    )
    return total / targets.numel()


def timed(run: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds of a child process, from its start to its end."""
    start, before = time.perf_counter(), os.times()
    run()
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system
    return {
        "seconds": seconds,
        "CPU seconds": cpu - before.children_user - before.children_system,
    }


class Ours:
    """A project of its own under the profile, with its tokens."""

    def __init__(self, root: Path, project: Path, threads: int) -> None:
        self.project = project
        for name in ("profiles", "stages"):
            shutil.copytree(root / name, project / name)
        for name in ("params.yaml", "versions.yaml"):
            shutil.copy(root / name, project)
        path = os.pathsep.join([str(root / "src"), str(root)])
        self.environment = os.environ | {"PYTHONPATH": path, "DVC_ROOT": str(project)}
        self.run("-m", "gptmill.cli", "profile", "shakespeare")
        params = project / "params.yaml"
        text = params.read_text(encoding="utf-8")
        params.write_text(text.replace("threads: 2", f"threads: {threads}"), encoding="utf-8")
        self.run("-m", "stages.download", "--dataset", "corpus", "--output", "data/raw/corpus")
        self.run("-m", "stages.tokenize", "--corpus", "data/raw/corpus", "--output", "data/tokens",
                 "--metrics", "tokenize.json")  # fmt: skip

    def run(self, *command: str) -> None:
        subprocess.run(
            [sys.executable, *command], cwd=self.project, env=self.environment, check=True
        )

    def train(self) -> dict[str, float]:
        took = timed(
            lambda: self.run(
                "-m", "stages.pretrain", "--tokens", "data/tokens", "--output", "models/pretrained",
                "--metrics", "pretrain.json", "--plots", "plots",
            )
        )  # fmt: skip
        tokens = self.project / "data/tokens"
        dtype = read_json(tokens / "index.json")["dtype"]
        ids = np.memmap(tokens / "validation/00000.bin", dtype, "r")[:-1]  # less the end of text
        model = load_language_model(self.project / "models/pretrained")
        return took | {"validation loss": loss_over_the_split(model, ids)}


class NanoGPT:
    """A copy of the checkout, with its data prepared by its own script."""

    def __init__(self, checkout: Path, copy: Path, text: str, threads: int) -> None:
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
        self.copy = copy
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        # As PyTorch comes: what importing gptmill here has set is not nanoGPT's.
        for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
            self.environment.pop(name, None)
        (copy / "data/shakespeare_char/input.txt").write_text(text, encoding="utf-8")
        self.run("data/shakespeare_char/prepare.py")

    def run(self, *command: str) -> None:
        subprocess.run(
            [sys.executable, *command], cwd=self.copy, env=self.environment, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def train(self) -> dict[str, float]:
        took = timed(lambda: self.run("train.py", *RECIPE))
        sys.path.insert(0, str(self.copy))
        from model import GPT, GPTConfig

        checkpoint = torch.load(self.copy / "out-shakespeare-char/ckpt.pt", weights_only=True)
        model = GPT(GPTConfig(**checkpoint["model_args"])).eval()
        model.load_state_dict(checkpoint["model"])
        ids = np.fromfile(self.copy / "data/shakespeare_char/val.bin", dtype=np.uint16)
        loss = loss_over_the_split(lambda x: model(x, x)[0], ids)  # targets bring all positions
        return took | {"validation loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    checkout = os.environ.get("GPTMILL_NANOGPT")
    if not checkout:
        sys.exit("GPTMILL_NANOGPT does not name a checkout of nanoGPT")
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Path.cwd(), Path(folder) / "ours", options.threads)
        (corpus,) = (Path(folder) / "ours/data/raw/corpus").rglob("*.txt")
        text = corpus.read_text(encoding="utf-8")
        peer = NanoGPT(Path(checkout), Path(folder) / "nanoGPT", text, options.threads)
        rows: dict[str, list[dict[str, float]]] = {"gptmill": [], "nanoGPT": []}
        for _ in range(options.rounds):
            for name, contender in (("gptmill", ours), ("nanoGPT", peer)):
                rows[name].append(contender.train())
                print(name, {key: round(value, 4) for key, value in rows[name][-1].items()})
        for unit in ("seconds", "CPU seconds"):
            medians = [statistics.median(r[unit] for r in results) for results in rows.values()]
            print(f"{unit}: {medians[0] / medians[1]:.2f} of nanoGPT's")


if __name__ == "__main__":
    main()
