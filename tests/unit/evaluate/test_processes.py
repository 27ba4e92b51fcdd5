"""Evaluation in several processes: each computes a share, and the sums are those of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gptmill.engine.runtime import open_runtime
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tasks.classify import ClassificationTask, collate_labeled, predict
from gptmill.tasks.language_model import document_nats
from gptmill.tokenizer import train_byte_pairs
from gptmill.weights.folder import save_model

CONFIG = GPT2Config(vocabulary_size=27, context_length=64, layers=2, heads=2, width=16)
TEXT = "the dog and the cat " * 60


def command(*arguments: str, **environment: str) -> str:
    """What a command prints; the number of threads decides how kernels add up, so it is one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = train_byte_pairs([TEXT], 262)
    config = GPT2Config(tokenizer.vocabulary_size, 64, 2, 2, 16)
    save_model(tmp_path / "model", GPT2(config), tokenizer, provenance={})
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    return tmp_path / "model"


def test_perplexity_of_two_processes_is_that_of_one(model: Path) -> None:
    arguments = ("gptmill.cli", "perplexity", "--model", str(model), "--text",
                 str(model.parent / "text"))  # fmt: skip
    alone = command(*arguments)
    assert "perplexity" in alone
    assert command(*arguments, "--processes", "2") == alone


@pytest.mark.clusters
def test_few_shot_accuracy_of_two_processes_is_that_of_one(model: Path) -> None:
    task, plot = model.parent / "task.jsonl", model.parent / "plot.png"
    rows = [{"text": TEXT[i : i + 9], "label": "ad"[i % 2]} for i in range(19)]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ("gptmill.cli", "evaluate", "fewshot", "--model", str(model), "--task", str(task),
                 "--batch-size", "4", "--shots", "0", "2", "--output", str(plot))  # fmt: skip
    alone = command(*arguments)
    figures = plot.with_suffix(".json").read_bytes()
    plot.with_suffix(".json").unlink()
    assert command(*arguments, "--processes", "2") == alone
    assert plot.with_suffix(".json").read_bytes() == figures


def evaluated() -> dict[str, list[float]]:
    """Nats of documents of which some slide, and a classifier's logits, by this process's share."""
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    random = np.random.default_rng(0)
    documents = [random.integers(0, 27, size) for size in (3, 200, 64, 90, *range(5, 60))]
    torch.manual_seed(0)
    nats = document_nats(GPT2(CONFIG), documents, 0, 64, 32, runtime)
    classifier = GPT2Classifier(CONFIG, 3)
    examples = [(list(ids[:60]), i % 3) for i, ids in enumerate(documents)]
    batches = [collate_labeled(examples[i : i + 4], 0) for i in range(0, len(examples), 4)]
    task = ClassificationTask([1.0, 1.0, 1.0], "last_token")
    logits = predict(classifier, task, batches, runtime)
    return {"nats": [nats], "logits": logits.ravel().tolist()} if runtime.first else {}


@pytest.mark.clusters
@pytest.mark.parametrize("count", [2, 3])
def test_likelihood_and_labels_do_not_depend_on_the_processes(count: int) -> None:
    found = command(
        "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", __name__
    )
    assert json.loads(found) == evaluated()


if __name__ == "__main__":
    if figures := evaluated():
        print(json.dumps(figures))
