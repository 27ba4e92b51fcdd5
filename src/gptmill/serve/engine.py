"""Continuous batching: each language model has one thread, which gives every running request one
token a step (Yu et al. 2022, Orca).

Requests that wait are prefilled together, apart from those that run, and their rows join the
running batch; rows that are finished or cancelled leave it. Each request has a sampler of its own,
so that its tokens do not depend on who shares the batch. What fails in one request ends that
request; when a whole step fails, its rows are tried again one by one.

V is the vocabulary.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gptmill.generate.loop import GrowingSequence, StopReason, left_padded
from gptmill.generate.sampling import Sampler, SamplingOptions
from gptmill.onnx.session import OnnxDecoder
from gptmill.serve.constraint import Constraint
from gptmill.serve.metrics import Meter
from gptmill.tokenizer import Tokenizer

PREFILL_TOKENS = 2048  # padded tokens of one prefill, the longest that running requests wait for

log = logging.getLogger("gptmill.serve")


class Busy(Exception):
    """The queue is full, or the engine is closing."""


class Overdue(Exception):
    """The request's time is over."""


class Candidate(NamedTuple):
    """A token, and its log-probability in the model's own distribution."""

    id: int
    logprob: float


class Scored(NamedTuple):
    """A chosen token and the likeliest ones in its place."""

    chosen: Candidate
    top: list[Candidate]


class Piece(NamedTuple):
    """Text that is certain, and the scores of its tokens where the request wants them."""

    text: str
    scored: list[Scored]


class Finished(NamedTuple):
    """How a request ended: its response's ids, the prompt's tokens that the model saw, and seconds
    in the queue, until the first token, and from there to the last."""

    reason: StopReason
    ids: list[int]
    prompt_tokens: int
    waited: float
    prompt_seconds: float
    seconds: float


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
    """

    prompt_ids: list[int]
    options: SamplingOptions
    context_length: int
    deadline: float
    emit: Callable[[Event], None]
    top_candidates: int | None = None
    constraint: Constraint | None = None
    cancelled: bool = False


class Engine:
    """Runs the requests of one language model.

    Args:
        decoder: an empty one.
        max_batch: requests that run at the same time.
        max_queue: requests that wait beyond those.
    """

    def __init__(
        self,
        decoder: OnnxDecoder,
        tokenizer: Tokenizer,
        meter: Meter,
        *,
        max_batch: int,
        max_queue: int,
    ) -> None:
        self._decoder, self._entrance = decoder, decoder.sibling()
        self._tokenizer, self._meter = tokenizer, meter
        self._max_batch, self._max_queue = max_batch, max_queue
        self._live: set[_Slot] = set()  # all that have not ended
        self._waiting: deque[_Slot] = deque()
        self._sliding: list[_Slot] = []  # they ran, and their window was cut
        self._running: list[_Slot] = []  # in the order of the decoder's rows
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="gptmill engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            Busy: as many wait already as may.
        """
        slot = _Slot(request, self._tokenizer)
        with self._changed:
            if self._closed:
                raise Busy("the server is shutting down")
            if len(self._live) >= self._max_batch + self._max_queue:
                raise Busy(f"{self._max_batch} requests run and {self._max_queue} wait already")
            self._live.add(slot)
            self._waiting.append(slot)
            self._changed.notify()

    def close(self) -> None:
        """End every request with `Busy`, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._closed:
                    break
            try:
                self._cycle()
            except Exception as error:  # a defect of ours: nobody may wait for it forever
                log.exception("the engine failed; its requests end")
                self._end_all(error)
        self._end_all(Busy("the server is shutting down"))

    def _has_work(self) -> bool:
        return bool(self._closed or self._waiting or self._sliding or self._running)

    def _cycle(self) -> None:
        """At most one prefill, then one step: neither waits long for the other."""
        self._drop_unwanted()
        group = self._next_group()
        if group:
            self._enter(group)
        self._leave_to_slide()
        if self._running:
            self._meter.step(len(self._running))
            self._step()
        with self._changed:
            self._live = {slot for slot in self._live if not slot.done}
            self._meter.depths(len(self._waiting), len(self._running))

    def _drop_unwanted(self) -> None:
        now = time.monotonic()
        with self._changed:
            for slot in self._live:
                slot.check(now)
            self._waiting = deque(slot for slot in self._waiting if not slot.done)
        self._sliding = [slot for slot in self._sliding if not slot.done]
        self._retain()

    def _next_group(self) -> list["_Slot"]:
        """Who enters next, first come first served, those that slid before all."""
        group, longest = [], 0
        with self._changed:
            while self._sliding or self._waiting:
                queue = self._sliding or self._waiting
                longest = max(longest, len(queue[0].sequence.window()))
                free = self._max_batch - len(self._running) - len(group)
                if free <= 0 or (group and longest * (len(group) + 1) > PREFILL_TOKENS):
                    break
                group.append(queue[0])
                del queue[0]
        return group

    def _enter(self, group: list["_Slot"]) -> None:
        """Prefill the windows of a group, choose their next tokens, join those that go on."""
        try:
            new = [slot for slot in group if not slot.started]
            for slot in new:
                slot.started = time.monotonic()
                self._meter.entered(slot.prompt_tokens)
            windows = [slot.sequence.window() for slot in group]
            logits = self._entrance.prefill(*left_padded(windows))
            self._advance(group, logits)
            for slot in new:
                self._meter.answering(time.monotonic() - slot.queued)
            rows = [row for row, slot in enumerate(group) if not slot.done]
            if rows:
                self._entrance.keep(np.array(rows))
                self._decoder.join(self._entrance)
                self._running += [group[row] for row in rows]
        except Exception as error:
            if len(group) > 1:
                return self._enter_alone(group)
            # Whatever it was, it ends this request alone; its client learns that, the log why.
            log.exception("a request failed")
            group[0].fail(error)

    def _enter_alone(self, slots: list["_Slot"]) -> None:
        """Find out who is at fault: the window is all that is needed to go on."""
        for slot in slots:
            if not slot.done:
                self._enter([slot])

    def _leave_to_slide(self) -> None:
        sliding = [slot for slot in self._running if slot.sequence.slide()]
        self._sliding += sliding
        self._retain(without=sliding)

    def _step(self) -> None:
        tokens = np.array([slot.token for slot in self._running])
        try:
            logits = self._decoder.step(tokens)
        except Exception:
            log.exception("a step of %d requests failed; each goes on alone", len(tokens))
            slots, self._running = self._running, []
            self._decoder.keep(np.array([], np.int64))
            return self._enter_alone(slots)
        self._advance(self._running, logits)
        self._retain()

    def _advance(self, slots: list["_Slot"], logits: np.ndarray) -> None:
        # A padded vocabulary has entries that no tokenizer can decode.
        logits = logits[:, : self._tokenizer.vocabulary_size]
        for row, slot in enumerate(slots):
            slot.advance(logits[row : row + 1])
        self._meter.chosen(len(slots))

    def _retain(self, without: list["_Slot"] = ()) -> None:
        """Free the rows of slots that are done or leave."""
        slots = self._running
        rows = [at for at, slot in enumerate(slots) if not slot.done and slot not in without]
        if len(rows) < len(slots):
            self._decoder.keep(np.array(rows, np.int64))
            self._running = [slots[row] for row in rows]

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            for slot in self._live:
                slot.fail(error)
            self._live.clear()
            self._waiting.clear()
        self._sliding, self._running = [], []
        self._decoder.keep(np.array([], np.int64))
        self._meter.depths(0, 0)


class _Slot:
    """A request on its way: its sequence, its sampler, and what it has to show."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request = request
        self.sequence = GrowingSequence(
            request.prompt_ids, tokenizer, request.options, request.context_length
        )
        self.token = 0  # the last one, not in the cache yet
        self.done = False
        self.started = 0.0  # time of its first prefill
        self.queued = time.monotonic()
        self._first = 0.0  # time of its first token
        self.prompt_tokens = len(self.sequence.window())
        self._sampler = Sampler(request.options, [request.prompt_ids])
        self._scored: list[Scored] = []  # of tokens whose text is held back

    def check(self, now: float) -> None:
        """End what nobody waits for, or what has taken too long."""
        if self.request.cancelled:
            self.done = True
        elif now > self.request.deadline:
            self.fail(Overdue())

    def advance(self, logits: np.ndarray) -> None:
        """Choose the next token from logits [1, V] and show what is certain."""
        try:
            self.token = self._choose(logits)
            text = self.sequence.accept(self.token)
            self._first = self._first or time.monotonic()
            reason = self.sequence.stop_reason
            if text or (reason and self._scored):
                self.request.emit(Piece(text, self._scored))
                self._scored = []
            if reason:
                self.done = True
                self.request.emit(self._finished(reason))
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if self.done:
            return
        self.done = True
        with suppress(Exception):  # nobody listens any more
            self.request.emit(error)

    def _choose(self, logits: np.ndarray) -> int:
        constraint, top = self.request.constraint, self.request.top_candidates
        allowed = logits if constraint is None else constraint.mask(logits)
        token = int(self._sampler.next_tokens(allowed)[0])
        if constraint is not None:
            constraint.accept(token)
        if top is not None:
            self._scored.append(score(logits[0], token, top))
        return token

    def _finished(self, reason: StopReason) -> Finished:
        now = time.monotonic()
        return Finished(
            reason,
            self.sequence.ids,
            self.prompt_tokens,
            waited=self.started - self.queued,
            prompt_seconds=self._first - self.started,
            seconds=now - self._first,
        )


def score(logits: np.ndarray, token: int, top: int) -> Scored:
    """A token's log-probability under logits [V], and the `top` likeliest, in order."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    likeliest = np.argpartition(-scores, min(top, len(scores) - 1))[:top]
    ordered = likeliest[np.argsort(-scores[likeliest], kind="stable")]
    return Scored(
        Candidate(token, float(scores[token])),
        [Candidate(int(id), float(scores[id])) for id in ordered],
    )
