"""Continuing a GPT-2 folder against `transformers.Trainer`: the same losses, step by step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer, learning_rate
from gptmill.engine.runtime import open_runtime
from gptmill.engine.state import TrainState
from gptmill.params import Optimizer
from gptmill.tasks.language_model import LanguageModelTask, TokenBatch
from gptmill.weights.folder import load_language_model

BLOCK, BATCH, STEPS, EPOCHS = 32, 4, 12, 2
OPTIMIZER = Optimizer(
    learning_rate=1e-3,
    final_learning_rate=0.0,
    warmup_steps=0,
    weight_decay=0.01,
    beta1=0.9,
    beta2=0.999,
    gradient_clip=1.0,
    muon=0.0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that both start from."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = TheirConfig(
        vocab_size=90, n_positions=64, n_embd=32, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def blocks() -> np.ndarray:
    """Blocks of a predictable text, [blocks, BLOCK]."""
    random = np.random.default_rng(0)
    count = BATCH * STEPS // EPOCHS
    return (np.arange(BLOCK) * 3 + random.integers(0, 90, (count, 1))) % 90


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, arguments, state, control, logs=None, **_):
        if "loss" in logs:
            self.values.append(logs["loss"])


def trainer_losses(folder: Path, blocks: np.ndarray, accumulation: int, output: Path) -> list:
    """A loss per step of `transformers.Trainer` over the blocks in order."""
    labels = blocks.copy()
    labels[:, 0] = -100  # nobody's target, which Trainer would count in the mean all the same
    losses = Losses()
    Trainer(
        model=GPT2LMHeadModel.from_pretrained(folder),
        args=TrainingArguments(
            output_dir=str(output), num_train_epochs=EPOCHS, use_cpu=True, report_to="none",
            per_device_train_batch_size=BATCH // accumulation,
            gradient_accumulation_steps=accumulation, train_sampling_strategy="sequential",
            learning_rate=OPTIMIZER.learning_rate, lr_scheduler_type="cosine",
            weight_decay=OPTIMIZER.weight_decay, max_grad_norm=OPTIMIZER.gradient_clip,
            logging_steps=1, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": i, "labels": j} for i, j in zip(blocks, labels)],
        callbacks=[losses],
    ).train()  # fmt: skip
    return losses.values


class InOrder:
    """The blocks again and again, so many to a batch."""

    def __init__(self, blocks: np.ndarray, size: int) -> None:
        self.blocks = blocks
        self.order = np.arange(len(blocks)).reshape(-1, size)
        self.cursor = 0

    def next_rows(self) -> np.ndarray:
        rows = self.order[self.cursor % len(self.order)]
        self.cursor += 1
        return rows

    def batch_of(self, rows: np.ndarray) -> TokenBatch:
        blocks = self.blocks[rows]
        return TokenBatch(blocks[:, :-1], blocks[:, 1:])

    def state_dict(self) -> dict[str, int]:
        return {"cursor": self.cursor}


def our_losses(folder: Path, blocks: np.ndarray, accumulation: int) -> list[float]:
    model = load_language_model(folder)
    batches = InOrder(blocks, BATCH // accumulation)
    state = TrainState(model, build_optimizer(model, OPTIMIZER), batches)

    def rate(step: int) -> float:
        # Trainer's cosine begins at its peak; ours has already moved by a step.
        return learning_rate(step - 1, STEPS, OPTIMIZER) if step else OPTIMIZER.learning_rate

    losses: list[float] = []
    fit(
        state,
        LanguageModelTask(),
        open_runtime(seed=0, threads=1, precision="float32"),
        FitConfig(STEPS, accumulation, OPTIMIZER.gradient_clip, rate),
        [lambda state, result: losses.append(result.loss.item())],
    )
    return losses


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_are_those_of_transformers_trainer(
    accumulation: int, folder: Path, blocks: np.ndarray, tmp_path: Path
) -> None:
    ours = our_losses(folder, blocks, accumulation)
    theirs = trainer_losses(folder, blocks, accumulation, tmp_path)
    assert len(theirs) == STEPS
    assert ours[-1] < ours[0] - 0.3  # it learns: equal losses are no accident of standing still
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
