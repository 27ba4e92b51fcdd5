"""What an engine is asked, and how far that has come. V is the vocabulary."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gptmill.generate.loop import GrowingSequence, StopReason
from gptmill.generate.sampling import SamplingOptions, SequenceSampler
from gptmill.serve.adjustment import Adjustment
from gptmill.serve.grammar import Constraint
from gptmill.serve.metrics import Meter
from gptmill.serve.scores import Scored, score
from gptmill.tokenizer import Tokenizer


class Busy(Exception):
    """The queue is full, or the engine is closing."""


class Overdue(Exception):
    """The request's time is over."""


class Piece(NamedTuple):
    """Text that is certain, the scores of its tokens where the request wants them, and how many
    tokens of the response were generated since the piece before."""

    text: str
    scored: list[Scored]
    tokens: int = 0


class Finished(NamedTuple):
    """How a request ended: its response's ids, the prompt's tokens that the model saw, seconds
    in the queue, until the first token, and from there to the last, and how many of the prompt's
    tokens were known already."""

    reason: StopReason
    ids: list[int]
    prompt_tokens: int
    waited: float
    prompt_seconds: float
    seconds: float
    reused: int = 0


Event = Piece | Finished | Exception


@dataclass(eq=False)
class Request:
    """What an engine is asked.

    Args:
        prompt_ids: the prompt, not empty; a longer one than the context is seen from its end.
        context_length: tokens of its window, at most the model's.
        deadline: `time.monotonic()` after which it ends with `Overdue`.
        emit: called from the engine's thread with each `Piece`, and last with `Finished` or an
            exception.
        top_candidates: how many of the likeliest tokens to score at each step; None scores none.
        constraint: what the response must be, or None.
        score_end: whether to score the token that ends the response, which is no part of it.
        adjustment: what changes the logits that a token is chosen by, and no score; or None.
        client: who asks; the places are shared among clients.
        streams: whether pieces are emitted as they come, or all as one at the end.
        index: the number of its random stream among those of its seed.
        id: what the log calls it.
    """

    prompt_ids: list[int]
    options: SamplingOptions
    context_length: int
    deadline: float
    emit: Callable[[Event], None]
    top_candidates: int | None = None
    constraint: Constraint | None = None
    score_end: bool = False
    client: str = ""
    adjustment: Adjustment | None = None
    streams: bool = True
    index: int = 0
    id: str = ""
    canceled: bool = False


class Slot:
    """A request on its way: its sequence, its sampler, and what it has to show."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request = request
        self.sequence = GrowingSequence(
            request.prompt_ids, tokenizer, request.options, request.context_length
        )
        self.token = 0  # the last one, not in the cache yet
        self.done = self.failed = False
        self.started = 0.0  # time of its first prefill
        self.queued = time.monotonic()
        self._first = 0.0  # time of its first token
        self._noted = False
        self.prompt_tokens = len(self.sequence.window())
        self.sampler = SequenceSampler(request.options, request.prompt_ids, request.index)
        self._text, self._scored = "", list[Scored]()  # not emitted yet
        self._emitted = 0  # tokens
        self.reused = 0  # tokens of the prompt that were not computed

    def check(self, now: float) -> None:
        """End what nobody waits for, or what has taken too long."""
        if self.request.canceled:
            self.done = True
        elif now > self.request.deadline:
            self.fail(Overdue())

    @property
    def is_restricted(self) -> bool:
        """Whether its tokens are chosen by other logits than the model's."""
        return self.request.constraint is not None or self.request.adjustment is not None

    def restrict(self, logits: np.ndarray) -> None:
        """Change logits [1, V] in place to those that the next token is chosen by."""
        try:
            if self.request.adjustment is not None:
                logits[:] = self.request.adjustment.apply(logits, self.sequence.ids)
            if self.request.constraint is not None:
                logits[:] = self.request.constraint.mask(logits)
        except Exception as error:
            self.fail(error)

    def advance(self, token: int, logits: np.ndarray) -> None:
        """Take the next token, chosen under the model's logits [V], and show what is certain."""
        try:
            if self.request.constraint is not None:
                left = self.request.options.max_new_tokens - len(self.sequence.ids) - 1
                token = self.request.constraint.accept(token, left)
            self.token = token
            if self.request.top_candidates is not None:
                self._scored.append(score(logits, token, self.request.top_candidates))
            text = self.sequence.accept(self.token)
            self._first = self._first or time.monotonic()
            reason = self.sequence.stop_reason
            if reason in ("end_of_text", "stop_token") and not self.request.score_end:
                self._scored = self._scored[:-1]
            self._text += text
            if (text and self.request.streams) or (reason and (self._text or self._scored)):
                count = len(self.sequence.ids)
                self.request.emit(Piece(self._text, self._scored, count - self._emitted))
                self._text, self._scored, self._emitted = "", [], count
            if reason:
                self.done = True
                self.request.emit(self._finished(reason))
        except Exception as error:
            self.fail(error)

    def note_first(self, meter: Meter) -> None:
        """Tell the meter, once, how long the first token took."""
        if not self._noted:
            self._noted = True
            meter.answering(time.monotonic() - self.queued)

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if self.done:
            return
        self.done = self.failed = True
        with suppress(Exception):  # nobody listens any more
            self.request.emit(error)

    def _finished(self, reason: StopReason) -> Finished:
        now = time.monotonic()
        return Finished(
            reason,
            self.sequence.ids,
            self.prompt_tokens,
            waited=self.started - self.queued,
            prompt_seconds=self._first - self.started,
            seconds=now - self._first,
            reused=self.reused,
        )
