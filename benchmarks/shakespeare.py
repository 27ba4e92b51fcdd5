"""Tiny Shakespeare by characters: our profile `shakespeare` against nanoGPT's recipe, in one run.

    GPTMILL_MIRROR=... python -m benchmarks.shakespeare [--rounds 2] [--threads 2]

Both start as processes of their own and are timed from there to trained and saved weights, in
alternation; CPU seconds say more where other work runs beside. Ours is `python -m
stages.pretrain`, tracking, samples and final evaluation included.

The peer is our reconstruction of nanoGPT's CPU run from its public description, not its code:
plain modules, `torch.stack` of windows at random places, AdamW as PyTorch has it by default, the
loss read at every step (--log_interval=1), every 250 steps a loss over 20 batches of either split
and a checkpoint if validation is better; 4 layers, 4 heads, width 128, context 64, batch 12, 2,000
steps, 1e-3 to 1e-4 after 100 steps of warmup, betas 0.9 and 0.99, decay 0.1, clipping at 1, no
dropout, no biases. Losses are of the weights at the end (ours: the best), in nats a character:
over the whole validation split in windows of 64, and nanoGPT's way, over random windows.
"""

import argparse
import json
import math
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
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
PEAK, FINAL, WARMUP = 1e-3, 1e-4, 100
EVALUATE_EVERY, EVALUATION_BATCHES = 250, 20


class Attention(nn.Module):
    """Causal self-attention of all heads at once."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        query, key, value = (
            part.view(B, T, HEADS, C // HEADS).transpose(1, 2)
            for part in self.project(x).split(C, dim=2)
        )
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(context.transpose(1, 2).contiguous().view(B, T, C))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(WIDTH, bias=False)
        self.attention = Attention()
        self.norm_2 = nn.LayerNorm(WIDTH, bias=False)
        self.inner = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.activation = nn.GELU()
        self.out = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.out(self.activation(self.inner(self.norm_2(x))))


class Peer(nn.Module):
    """A plain GPT with a tied head and GPT-2's initialisation."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = math.sqrt(2 * LAYERS) if name.endswith("out.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / scale)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def windows_at_random(ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Inputs and targets [B, T]."""
    starts = torch.randint(len(ids) - CONTEXT, (BATCH,)).tolist()
    inputs, targets = (
        torch.stack(
            [torch.from_numpy(ids[i + o : i + o + CONTEXT].astype(np.int64)) for i in starts]
        )
        for o in (0, 1)
    )
    return inputs, targets


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def loss_over_random_windows(model: nn.Module, ids: np.ndarray, batches: int) -> float:
    """nanoGPT's estimate."""
    model.eval()
    losses = [mean_loss(model, *windows_at_random(ids)).item() for _ in range(batches)]
    model.train()
    return statistics.fmean(losses)


@torch.no_grad()
def loss_over_the_split(model: nn.Module, ids: np.ndarray) -> float:
    """Windows of 64 side by side, every character but the first and the last few a target once."""
    count = (len(ids) - 1) // CONTEXT
    rows = [
        torch.from_numpy(ids[o : o + count * CONTEXT].astype(np.int64)).view(count, CONTEXT)
        for o in (0, 1)
    ]
    model.eval()
    losses = [mean_loss(model, *pair) * len(pair[0]) for pair in zip(*(r.split(128) for r in rows))]
    return float(sum(losses)) / count


def peer_learning_rate(step: int) -> float:
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    share = (step - WARMUP) / (STEPS - WARMUP)
    return FINAL + 0.5 * (1 + math.cos(math.pi * share)) * (PEAK - FINAL)


def train_peer(splits: dict[str, np.ndarray], vocabulary: int, checkpoint: Path) -> Peer:
    """nanoGPT's loop as described above."""
    torch.manual_seed(1337)
    model = Peer(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.1)
    inputs, targets = windows_at_random(splits["train"])
    best = math.inf
    for step in range(STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = peer_learning_rate(step)
        if step % EVALUATE_EVERY == 0:
            estimates = {
                name: loss_over_random_windows(model, ids, EVALUATION_BATCHES)
                for name, ids in splits.items()
            }
            print(f"step {step}: {estimates}", file=sys.stderr)
            if step and estimates["validation"] < best:
                best = estimates["validation"]
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state, checkpoint)
        loss = mean_loss(model, inputs, targets)
        inputs, targets = windows_at_random(splits["train"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    return model


def read_splits(tokens: Path) -> tuple[dict[str, np.ndarray], int]:
    """Memory-mapped ids by split, without the end-of-text that closes the last; the vocabulary."""
    index = json.loads((tokens / "index.json").read_text())
    maps = {
        name: np.memmap(tokens / name / "00000.bin", index["dtype"], "r")
        for name in ("train", "validation")
    }
    return maps | {"validation": maps["validation"][:-1]}, index["vocabulary_size"]


def peer() -> None:
    """The peer's process: train, say how long it took since the process started, then measure."""
    splits, vocabulary = read_splits(Path("data/tokens"))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = train_peer(splits, vocabulary, Path("peer.pt"))
    took = {
        "seconds": time.time() - psutil.Process().create_time(),
        "CPU seconds": time.process_time(),
    }
    print(json.dumps(took | losses(model, splits["validation"])))


def losses(model: nn.Module, validation: np.ndarray) -> dict[str, float]:
    torch.manual_seed(0)
    return {
        "validation split": loss_over_the_split(model, validation),
        "random windows": loss_over_random_windows(model, validation, 200),
    }


def ours(run: Callable[..., str]) -> dict[str, float]:
    """The stage's process, timed whole."""
    from gptmill.weights.folder import load_language_model

    start, before = time.perf_counter(), os.times()
    run("-m", "stages.pretrain", "--tokens", "data/tokens", "--output", "models/pretrained",
        "--metrics", "pretrain.json", "--plots", "plots")  # fmt: skip
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    splits, _ = read_splits(Path("data/tokens"))
    return {
        "seconds": seconds,
        "CPU seconds": cpu,
        **losses(load_language_model(Path("models/pretrained")), splits["validation"]),
        "stage's own": json.loads(Path("pretrain.json").read_text())["validation/loss"],
    }


def prepare(root: Path, project: Path, threads: int) -> Callable[..., str]:
    """A project of its own under the profile, with its tokens; returns how to run Python in it."""
    for name in ("profiles", "stages"):
        shutil.copytree(root / name, project / name)
    shutil.copy(root / "params.yaml", project)
    path = os.pathsep.join([str(root / "src"), str(root), *sys.path])
    environment = os.environ | {
        "PYTHONPATH": path, "DVC_ROOT": str(project), "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, *command], cwd=project, env=environment, check=True,
            stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip

    run("-m", "gptmill.cli", "profile", "shakespeare")
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("threads: 2", f"threads: {threads}"))
    run("-m", "stages.download", "--dataset", "corpus", "--output", "data/raw/corpus")
    run("-m", "stages.tokenize", "--corpus", "data/raw/corpus", "--output", "data/tokens",
        "--metrics", "tokenize.json")  # fmt: skip
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", action="store_true", help="be the peer's process")
    options = parser.parse_args()
    if options.peer:
        return peer()
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(Path.cwd(), Path(folder), options.threads)
        os.chdir(folder)
        rows: dict[str, list[dict[str, float]]] = {"gptmill": [], "nanoGPT's recipe": []}
        for _ in range(options.rounds):
            rows["gptmill"].append(ours(run))
            rows["nanoGPT's recipe"].append(
                json.loads(run("-m", "benchmarks.shakespeare", "--peer"))
            )
            for name, results in rows.items():
                print(
                    name, {key: round(value, 4) for key, value in results[-1].items()}, flush=True
                )
        for unit in ("seconds", "CPU seconds"):
            medians = [statistics.median(r[unit] for r in results) for results in rows.values()]
            print(f"{unit}: {medians[0] / medians[1]:.2f} of the peer's")


if __name__ == "__main__":
    main()
