"""An open model, and what it is asked."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptmill.generate.sampling import SamplingOptions
from gptmill.runtime.embedder import Embedder
from gptmill.runtime.session import Generator
from gptmill.serve.adjustment import Adjustment
from gptmill.serve.catalogue import Card
from gptmill.serve.constraint import Grammars
from gptmill.serve.engine import Engine
from gptmill.serve.grammar import Constraint
from gptmill.serve.metrics import Meter, Metrics
from gptmill.serve.request import Piece
from gptmill.serve.scores import Scored, prompt_scores


@dataclass(frozen=True)
class Limits:
    """What one server allows.

    Args:
        max_batch: requests of one model that run at the same time.
        max_queue: requests of one model that wait beyond those.
        max_tokens: tokens of one response.
        timeout: seconds of one request, waiting included.
        threads: CPU threads of one model; None takes every physical core.
        drain: seconds that running answers have when the server is told to stop.
        prefix_cache: MiB of keys and values that each model keeps for prompts to come; 0 for none.
    """

    max_batch: int = 16
    max_queue: int = 128
    max_tokens: int = 2048
    timeout: float = 300.0
    threads: int | None = None
    drain: float = 5.0
    prefix_cache: float = 256


@dataclass(frozen=True)
class Ask:
    """One request to a language model, its prompt already in tokens; see `engine.Request`.

    Args:
        opening: what its answer begins with, or None.
        generates: whether tokens follow.
    """

    prompt_ids: list[int]
    options: SamplingOptions
    context_length: int
    top_candidates: int | None = None
    schema: dict[str, Any] | None = None
    score_end: bool = False
    adjustment: Adjustment | None = None
    index: int = 0
    opening: Piece | None = None
    generates: bool = True


class LanguageModel:
    """An open model: its tokenizer, how it is asked, and its engine."""

    def __init__(self, card: Card, limits: Limits, metrics: Metrics) -> None:
        generator = Generator(card.folder, limits.threads)
        self.card = card
        self.tokenizer = generator.tokenizer
        self.prompt_style = generator.prompt_style
        self.stop_tokens = generator.stop_tokens
        self.context_length = generator.decoder.context_length
        self.engine = Engine(
            generator.decoder,
            generator.tokenizer,
            Meter(metrics, card.name),
            max_batch=limits.max_batch,
            max_queue=limits.max_queue,
            prefix_bytes=int(limits.prefix_cache * 2**20),
        )
        self._decoder = generator.decoder
        self._grammars: Grammars | None = None
        self._threads = limits.threads
        self._embedder: Embedder | None = None
        self._lazily = threading.Lock()  # held while what not every client needs is made

    def constraint(self, schema: dict[str, Any], deadline: float) -> Constraint:
        """What holds one response to a schema; see `Grammars.constraint`."""
        with self._lazily:
            self._grammars = self._grammars or Grammars(self.tokenizer)
        return self._grammars.constraint(schema, deadline)

    def prompt_scores(self, ids: list[int], top: int) -> list[Scored]:
        """The scores of a text that fits the context, apart from the engine's batch."""
        return prompt_scores(self._decoder.sibling(), ids, top, self.tokenizer.vocabulary_size)

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return self.card.model.architecture.width

    def embed(self, texts: list[list[int]]) -> np.ndarray:
        """Vectors [texts, C] of token ids; see `Embedder.embed`."""
        with self._lazily:
            self._embedder = self._embedder or Embedder(self.card.folder, self._threads)
        return self._embedder.embed(texts)

    def close(self) -> None:
        """End its requests."""
        self.engine.close()
        if self._grammars:
            self._grammars.close()
