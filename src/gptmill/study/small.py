"""A model small enough to train in a second or two, on characters of the pipeline's own text.

Characters, whatever the pipeline's tokenizer: a vocabulary of a hundred keeps the head cheap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptmill.data.tokens import sliding_windows
from gptmill.diagnosis import Curve
from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.hooks import StepResult, every
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer, learning_rate
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import TrainState
from gptmill.errors import UserError
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.params import Optimizer
from gptmill.study.finding import require
from gptmill.tasks.language_model import LanguageModelTask, TokenBatch, batch_loss
from gptmill.tokenizer import VocabularyTokenizer, train_vocabulary

CONTEXT, BATCH = 32, 16
WIDTH, LAYERS, HEADS = 48, 2, 2
CHARACTERS = 128
POINTS = 20  # of a curve
HELD_OUT = 64  # windows behind a point
# The CPU always: launching kernels for so small a model costs a GPU more than the model.
CPU = Runtime(torch.device("cpu"), torch.float32, compile=False)


@dataclass(frozen=True)
class SmallText:
    """Characters as ids, [N] each, with the tokenizer learned from the training part."""

    tokenizer: VocabularyTokenizer
    training: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class SmallRun:
    """A trained model and its curves, (step, loss); `stopped` says why it ended early, if so."""

    model: GPT2
    training: Curve
    validation: Curve
    stopped: str = ""


def small_text(training: Sequence[str], validation: Sequence[str]) -> SmallText:
    """Both texts as characters; those that training lacks are unknown.

    Raises:
        CannotShow: less than one window of either.
    """
    tokenizer = train_vocabulary(training, "character", CHARACTERS)
    learned, held_out = (
        np.array(tokenizer.encode("\n".join(texts))) for texts in (training, validation)
    )
    require(len(learned), CONTEXT + 1, "training characters")
    require(len(held_out), CONTEXT + 1, "held-out characters")
    return SmallText(tokenizer, learned, held_out)


def train_small(text: SmallText, optimizer: Optimizer, steps: int, seed: int) -> SmallRun:
    """Train with the pipeline's own loop; both losses are recorded twenty times."""
    torch.manual_seed(seed)
    size = text.tokenizer.vocabulary_size
    model = GPT2(GPT2Config(size, CONTEXT, LAYERS, HEADS, WIDTH), 0.1, 0.1)
    examples = np.stack(sliding_windows(text.training, CONTEXT, CONTEXT), axis=1)
    batches = ShuffledBatches(examples, _collate, BATCH, seed)
    windows = sliding_windows(text.validation[: HELD_OUT * CONTEXT + 1], CONTEXT, CONTEXT)
    held_out = TokenBatch(*map(np.array, windows))
    state = TrainState(model, build_optimizer(model, optimizer), batches)
    training: list[tuple[float, float]] = []
    validation = [(0.0, batch_loss(model, [held_out], CPU))]

    def record(state: TrainState, result: StepResult) -> None:
        training.append((state.step, result.loss.item()))

    def evaluate(state: TrainState) -> None:
        validation.append((state.step, batch_loss(model, [held_out], CPU)))

    config = FitConfig(
        steps, 1, optimizer.gradient_clip, lambda step: learning_rate(step, steps, optimizer)
    )
    stopped = ""
    try:
        fit(state, LanguageModelTask(), CPU, config, [record, every(steps // POINTS, evaluate)])
    except UserError as diverged:
        stopped = str(diverged)
    return SmallRun(model.eval(), training, validation, stopped)


def _collate(examples: list[np.ndarray]) -> TokenBatch:
    inputs, targets = np.stack(examples, axis=1)
    return TokenBatch(inputs, targets)
