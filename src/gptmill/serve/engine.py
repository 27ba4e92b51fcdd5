"""Continuous batching: each language model has one thread, which gives every running request one
token a step (Yu et al. 2022, Orca).

Requests that wait are prefilled together, apart from those that run, and their rows join the
running batch; rows that are finished or cancelled leave it. A long prefill is done in pieces, with
a step of the running ones after each (Agrawal et al. 2023, Sarathi). Each request has a sampler of
its own, so that its tokens do not depend on who shares the batch. What fails in one request ends
that request; when a whole step fails, its rows are tried again one by one.

V is the vocabulary.
"""

import itertools
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gptmill.batching import left_padded
from gptmill.errors import UserError
from gptmill.generate.loop import GrowingSequence, StopReason
from gptmill.generate.sampling import (
    NOT_FINITE,
    SamplingOptions,
    SequenceSampler,
    is_finite,
    next_tokens,
)
from gptmill.runtime.session import OnnxDecoder
from gptmill.serve.adjustment import Adjustment
from gptmill.serve.grammar import Constraint
from gptmill.serve.metrics import Meter
from gptmill.serve.prefill import Prefill
from gptmill.serve.scores import Scored, score
from gptmill.tokenizer import Tokenizer

SHUTTING_DOWN = "the server is shutting down"
CLIENT_SHARE = 0.75  # of the queue, for one client's requests
PREFILL_TOKENS = 2048  # padded tokens of one prefill
PIECE_TOKENS = 64  # of it between two steps, the longest that running requests wait for

log = logging.getLogger("gptmill.serve")


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
        self._entering: Prefill[_Slot] | None = None
        self._running: list[_Slot] = []  # in the order of the decoder's rows
        self._turns: dict[str, int] = {}  # when each client last had one enter
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._closed = self._draining = False
        self._thread = threading.Thread(target=self._run, name="gptmill engine", daemon=True)
        self._thread.start()

    def submit(self, *requests: Request) -> None:
        """Queue the requests of one client, all or none.

        Raises:
            Busy: as many wait already as may.
        """
        slots = [_Slot(request, self._tokenizer) for request in requests]
        client = requests[0].client
        share = self._max_batch + math.ceil(CLIENT_SHARE * self._max_queue)
        with self._changed:
            if self._closed or self._draining:
                raise Busy(SHUTTING_DOWN)
            if len(self._live) + len(slots) > self._max_batch + self._max_queue:
                raise Busy(f"{self._max_batch} requests run and {self._max_queue} wait already")
            held = sum(other.request.client == client for other in self._live)
            if held + len(slots) > share:
                raise Busy(f"{share} requests of one client are here already")
            self._live.update(slots)
            self._waiting += slots
            self._changed.notify()

    def count(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def drain(self) -> None:
        """Take no more requests and end those that wait with `Busy`; the running ones go on."""
        with self._changed:
            self._draining = True
            for slot in self._waiting:
                slot.fail(Busy(SHUTTING_DOWN))
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
        self._end_all(Busy(SHUTTING_DOWN))

    def _has_work(self) -> bool:
        waiting = self._waiting or self._sliding or self._entering
        return bool(self._closed or waiting or self._running)

    def _cycle(self) -> None:
        """At most one piece of a prefill, then one step: neither waits long for the other."""
        self._drop_unwanted()
        if self._entering is None and (group := self._next_group()):
            self._entering = self._begin(group)
        if self._entering is not None:
            self._enter(self._entering, PIECE_TOKENS if self._running else PREFILL_TOKENS)
        self._leave_to_slide()
        if self._running:
            self._meter.step(len(self._running))
            self._step()
        with self._changed:
            self._live = {slot for slot in self._live if not slot.done}
            clients = {slot.request.client for slot in self._live}
            self._turns = {name: at for name, at in self._turns.items() if name in clients}
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
        """Who enters next: those that slid, then the client with the fewest that run, of those the
        one whose turn is longest ago; of a client's requests the first that came."""
        group, longest = [], 0
        with self._changed:
            held = Counter(slot.request.client for slot in [*self._running, *self._sliding])
            while self._sliding or self._waiting:
                queue = self._sliding or self._waiting
                slot = min(queue, key=lambda slot: (held[slot.request.client], self._turn(slot)))
                longest = max(longest, len(slot.sequence.window()))
                free = self._max_batch - len(self._running) - len(group)
                if free <= 0 or (group and longest * (len(group) + 1) > PREFILL_TOKENS):
                    break
                group.append(slot)
                queue.remove(slot)
                held[slot.request.client] += 1
                self._turns[slot.request.client] = next(self._count)
        return group

    def _turn(self, slot: "_Slot") -> int:
        return self._turns.get(slot.request.client, -1)

    def _begin(self, group: list["_Slot"]) -> Prefill["_Slot"]:
        """Start on the windows of a group; what is the same is computed once."""
        for slot in group:
            if not slot.started:
                slot.started = time.monotonic()
                self._meter.entered(slot.prompt_tokens)
        windows = [tuple(slot.sequence.window()) for slot in group]
        unlike = list(dict.fromkeys(windows))
        ids, mask = left_padded(unlike)
        self._entrance.begin(ids.shape[1] - mask.sum(axis=1))
        return Prefill(group, ids, np.array([unlike.index(window) for window in windows]))

    def _enter(self, prefill: Prefill["_Slot"], tokens: int) -> None:
        """Read so many more padded tokens; with the last ones, choose the next of each slot and
        join those that go on."""
        self._entering = None
        group = prefill.group
        try:
            logits = self._entrance.extend(prefill.take(tokens))[:, 0]
            if not prefill.is_read:
                self._entering = prefill
                return
            self._advance(group, logits[prefill.shared])
            for slot in group:
                slot.note_first(self._meter)
            rows = [row for row, slot in enumerate(group) if not slot.done]
            if rows:
                self._entrance.keep(prefill.shared[rows])
                self._decoder.join(self._entrance)
                self._running += [group[row] for row in rows]
        except Exception as error:
            if len(group) > 1:
                return self._enter_alone(group)
            # Whatever it was, it ends this request alone; its client learns that, the log why.
            log.exception("a request failed", extra={"request_id": group[0].request.id})
            group[0].fail(error)

    def _enter_alone(self, slots: list["_Slot"]) -> None:
        """Find out who is at fault: the window is all that is needed to go on."""
        for slot in slots:
            if not slot.done:
                self._enter(self._begin([slot]), PREFILL_TOKENS)

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
            if self._entering is not None:  # its cache makes place for each alone
                slots, self._entering = [*slots, *self._entering.group], None
            self._decoder.keep(np.array([], np.int64))
            return self._enter_alone(slots)
        self._advance(self._running, logits)
        self._retain()

    def _advance(self, slots: list["_Slot"], logits: np.ndarray) -> None:
        # A padded vocabulary has entries that no tokenizer can decode.
        logits = logits[:, : self._tokenizer.vocabulary_size]
        allowed = logits.copy() if any(slot.is_restricted for slot in slots) else logits
        for row, slot in enumerate(slots):
            slot.restrict(allowed[row : row + 1])
        for row in np.flatnonzero(~is_finite(allowed)):
            slots[row].fail(UserError(NOT_FINITE))
        rows = [row for row, slot in enumerate(slots) if not slot.done]
        samplers = [slots[row].sampler for row in rows]
        for row, token in zip(rows, next_tokens(allowed[rows], samplers).tolist()):
            slots[row].advance(token, logits[row])
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
        self._sliding, self._running, self._entering = [], [], None
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
        self._noted = False
        self.prompt_tokens = len(self.sequence.window())
        self.sampler = SequenceSampler(request.options, request.prompt_ids, request.index)
        self._text, self._scored = "", list[Scored]()  # not emitted yet
        self._emitted = 0  # tokens

    def check(self, now: float) -> None:
        """End what nobody waits for, or what has taken too long."""
        if self.request.cancelled:
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
        self.done = True
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
        )
