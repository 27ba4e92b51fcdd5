"""What differs between trainings; `stages._training.train_stage` runs any of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gptmill.engine.hooks import Hook
from gptmill.engine.loop import Task
from gptmill.engine.state import Batches, TrainState
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import Tokenizer

Rows = list[dict[str, Any]]
Note = Callable[[str, int, str], None]  # a text of a name at a step, for the tracker


@dataclass(frozen=True)
class Result:
    """What a finished training leaves.

    Attributes:
        metrics: final figures, the same from run to run.
        tables: rows that are drawn beside the curves.
        shown: name, columns and rows of a small table that the tracker shows.
        saved: more arguments of `save_model`.
        origin: more provenance than the stage's own.
        flops_per_target: to report the share of the machine's peak.
    """

    metrics: dict[str, Any]
    tables: dict[str, Rows] = field(default_factory=dict)
    shown: tuple[str, list[str], list[list[Any]]] | None = None
    saved: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    flops_per_target: int | None = None


class Recipe(Protocol):
    """One training: its model on its device, its batches, and what is measured on the way.

    `steps` of 0 are `epochs` passes over the batches.
    """

    tokenizer: Tokenizer
    model: GPT2 | GPT2Classifier
    task: Task
    batches: Batches
    steps: int

    def evaluate(self) -> dict[str, float]:
        """Metrics of the model as it is, `validation/loss` to choose by among them."""

    def hooks(self, note: Note) -> Sequence[Hook]:
        """More to do after a step, such as samples."""

    def finish(self, state: TrainState, note: Note) -> Result:
        """Final figures of the model, which has its best weights."""
