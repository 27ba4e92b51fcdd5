"""The model folders under one folder, by the names that clients use.

A folder NAME with `model.onnx` is the model NAME, which Ollama's clients call `NAME:latest`; a
quantized one is a model of its own, as `NAME-dynamic8`.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from gptmill.card import CLASSIFY, ModelCard
from gptmill.errors import UserError
from gptmill.files import sha256_tree
from gptmill.runtime.session import MODEL_FILE

DEFAULT_TAG = "latest"


@dataclass(frozen=True)
class Card:
    """One model as it lies on disk."""

    folder: Path
    model: ModelCard

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def tagged(self) -> str:
        """The name as Ollama writes it."""
        return f"{self.name}:{DEFAULT_TAG}"

    @property
    def precision(self) -> str:
        """How its weights are stored, as its name says."""
        return self.name.partition("-")[2].upper() or "F32"

    @property
    def is_classifier(self) -> bool:
        return self.model.task == CLASSIFY

    @property
    def prompt_style(self) -> str | None:
        """How it wants its instructions; None if it only continues text."""
        return self.model.prompt_style

    @property
    def context_length(self) -> int:
        return self.model.architecture.context_length

    @property
    def modified(self) -> datetime:
        return datetime.fromtimestamp((self.folder / MODEL_FILE).stat().st_mtime, UTC)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob(f"{MODEL_FILE}*"))

    @property
    def parameters(self) -> int:
        """How many weights."""
        labels = None if self.model.reading is None else len(self.model.reading.labels)
        return self.model.architecture.count_parameters(labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the folder."""
        return sha256_tree(self.folder)


class Catalogue:
    """The models found under `root` at the start, sorted by name.

    Raises:
        UserError: there is none.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"{root} does not exist: run `make repro`, or name a folder: --models")
        self.skipped: dict[Path, str] = {}
        self._cards: dict[str, Card] = {}
        for path in sorted([*root.glob(MODEL_FILE), *root.glob(f"*/{MODEL_FILE}")]):
            try:
                card = Card(path.parent.resolve(), ModelCard.read(path.parent))
            except UserError as error:
                self.skipped[path] = str(error)
            else:
                self._cards[card.tagged] = card
        if not self._cards:
            reasons = "".join(f"\n  {reason}" for reason in self.skipped.values())
            raise UserError(f"{root} has no model to serve: run `make repro`{reasons}")

    def __iter__(self):
        return iter(self._cards.values())

    def find(self, name: str) -> Card | None:
        """The model that a client names, with or without Ollama's tag."""
        return self._cards.get(name if ":" in name else f"{name}:{DEFAULT_TAG}")
