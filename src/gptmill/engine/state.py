"""All that a training run is, so that N + M steps equal N steps, a kill, and M more."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gptmill.engine.parallel import saved, saved_states, sharded, sharded_states, whole


class Batches(Protocol):
    """An endless, resumable source of micro-batches."""

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches in a pass over the data."""

    def next_rows(self) -> np.ndarray:
        """Which rows the next micro-batch has: numbers that `batch_of` understands."""

    def batch_of(self, rows: np.ndarray) -> Any:
        """A micro-batch of those rows, a task's own tuple of NumPy arrays."""

    def next_batch(self) -> Any:
        """The next micro-batch, with all of its rows."""

    def state_dict(self) -> dict[str, int]:
        """The position, as plain numbers."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position."""


@dataclass
class TrainState:
    """The raw model (never a wrapper), its optimizer, the position in the data, and the records.

    Where `model` is sharded, `whole_model` is the same model with plain tensors, to evaluate and to
    sample from: it has memory only while it is `gathered`.

    `best_value` is the lowest validation loss so far and `best_weights` what reached it, when the
    run chooses by validation; `curves` are the logged points, so that a resumed run draws them
    whole; `run_id` is the tracking run to reopen; `left_out` counts steps whose gradient was not
    finite (`engine.nonfinite`).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    step: int = 0
    targets: int = 0
    best_value: float = float("inf")
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    run_id: str = ""
    left_out: int = 0
    left_out_in_a_row: int = 0
    whole_model: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.whole_model is not None:
            self._device = next(self.whole_model.parameters()).device
            self.whole_model.to("meta")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that `torch.load(weights_only=True)` reads it.

        The tensors are whole: a state saved by four processes continues on two, or on one. Every
        process has to call this; the first alone has what is to be written.
        """
        return {
            "model": _saved(self.model.state_dict()),
            "optimizer": saved_states(self.optimizer),
            "batches": self.batches.state_dict(),
            "random": random_state(),
            **{name: getattr(self, name) for name in RECORDS},
            "best_weights": _saved(self.best_weights),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the state that was saved, every random generator included."""
        like = self.model.state_dict()
        self.model.load_state_dict(_sharded(state["model"], like))
        self.optimizer.load_state_dict(sharded_states(state["optimizer"], self.optimizer))
        self.batches.load_state_dict(state["batches"])
        for name in RECORDS:
            setattr(self, name, state[name])
        self.best_weights = _sharded(state["best_weights"], like)
        restore_random_state(state["random"])

    def finished_dict(self) -> dict[str, Any]:
        """Weights and records of a training that is over, whose best weights are the model's."""
        figures = {name: getattr(self, name) for name in FIGURES}
        return {"model": _saved(self.model.state_dict()), **figures}

    def load_finished(self, state: dict[str, Any]) -> None:
        """Become a training that is over; the tracking run will be another."""
        self.model.load_state_dict(_sharded(state["model"], self.model.state_dict()))
        for name in FIGURES:
            setattr(self, name, state[name])

    def keep_best(self, value: float) -> None:
        """Remember the weights if `value` is lower than any before."""
        if value < self.best_value:
            self.best_value = value
            self.best_weights = {
                name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
            }

    def restore_best(self) -> None:
        """Put the best weights back into the model."""
        if self.best_weights:
            self.model.load_state_dict(self.best_weights)

    def gather(self) -> None:
        """Give `whole_model` memory and a sharded model's weights. Every process has to call this;
        without a sharded model it does nothing."""
        if self.whole_model is not None:
            self.whole_model.to_empty(device=self._device)
            targets = self.whole_model.state_dict()
            for name, tensor in self.model.state_dict().items():
                targets[name].copy_(whole(tensor))

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """`gather`, and the memory given back after the block."""
        self.gather()
        yield
        if self.whole_model is not None:
            self.whole_model.to("meta")


def _saved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: saved(tensor) for name, tensor in tensors.items()}


def _sharded(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: sharded(tensor, like[name]) for name, tensor in tensors.items()}


FIGURES = ("step", "targets", "best_value", "curves", "left_out")
RECORDS = (*FIGURES, "best_weights", "run_id", "left_out_in_a_row")


def random_state() -> dict[str, Any]:
    """PyTorch's generators; data order and sampling draw from seeds of their own."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    metal = [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices, "mps": metal}


def restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    for metal in state["mps"]:
        torch.mps.set_rng_state(metal)
