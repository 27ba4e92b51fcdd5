"""What a stage costs before it computes: imports, the tracker, PyTorch's first step.

    python -m gptmill.plan.probe [tracking]

A process of its own, so that what this one has imported does not count. Prints one JSON object:
for each group of libraries the bytes it adds to the process and the processor seconds it takes.
Its journal and its database live in the temporary folder that the environment names; with
`tracking` it makes that database and nothing else, as a project does once.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psutil


def main() -> None:
    """Import group after group, as the stages do, and tell what each adds."""
    found, before = {}, (0, 0.0)
    for name, step in GROUPS.items():
        step()
        now = psutil.Process().memory_info().rss, _seconds()
        found[name] = {"bytes": now[0] - before[0], "seconds": now[1] - before[1]}
        before = now
    print(json.dumps(found))


def _seconds() -> float:
    """Processor seconds of this process and of those it waited for, such as git."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _python() -> None:
    import gptmill.params
    import gptmill.tracking  # noqa: F401


def _numbers() -> None:
    import gptmill.data.tokens
    import gptmill.tokenizer  # noqa: F401


def _tables() -> None:
    import pandas

    import gptmill.data.raw  # noqa: F401

    pandas.DataFrame({"text": ["a", "b"]}).to_csv()


def _tracking() -> None:
    from gptmill.tracking import Stage

    with Stage("plan", {}, timings=None) as stage:
        stage.metrics({"probe": 1.0})


def _torch() -> None:
    """A forward pass of a small model: libraries load kernels when they are first used."""
    import torch

    _small_loss(torch.inference_mode())


def _training() -> None:
    """A step of the same."""
    import torch

    from gptmill.engine.optim import build_optimizer
    from gptmill.plan.speed import OPTIMIZER

    model, loss = _small_loss(nullcontext())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    build_optimizer(model, OPTIMIZER).step()


def _small_loss(mode: AbstractContextManager) -> tuple[Any, Any]:
    import numpy as np
    import torch

    from gptmill.engine.runtime import Runtime
    from gptmill.model.config import GPT2Config
    from gptmill.model.gpt2 import GPT2
    from gptmill.tasks.language_model import LanguageModelTask, TokenBatch

    model = GPT2(GPT2Config(256, 128, 2, 4, 128)).train()
    ids = np.zeros((8, 128), np.int64)
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False)
    with mode:
        return model, LanguageModelTask().loss(model, TokenBatch(ids, ids), runtime)


def _sklearn() -> None:
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.metrics  # noqa: F401


def _matplotlib() -> None:
    import gptmill.study  # noqa: F401


def _onnx() -> None:
    import gptmill.export.onnx
    import gptmill.export.parity  # noqa: F401


def _judge() -> None:
    import gptmill.judge.reference
    import gptmill.judge.run  # noqa: F401


def _report() -> None:
    import gptmill.report  # noqa: F401


GROUPS: dict[str, Callable[[], None]] = {
    "python": _python,
    "numbers": _numbers,
    "tables": _tables,
    "tracking": _tracking,
    "torch": _torch,
    "training": _training,
    "sklearn": _sklearn,
    "matplotlib": _matplotlib,
    "onnx": _onnx,
    "judge": _judge,
    "report": _report,
}

if __name__ == "__main__":
    _tracking() if sys.argv[1:] == ["tracking"] else main()
