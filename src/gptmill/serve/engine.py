"""Continuous batching: each language model has one thread, which gives every running request one
token a step (Yu et al. 2022, Orca).

Requests that wait are prefilled together, apart from those that run, and their rows join the
running batch; rows that are finished or canceled leave it. A long prefill is done in pieces, with
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
from collections.abc import Sequence
from functools import partial

import numpy as np

from gptmill.errors import UserError
from gptmill.generate.sampling import NOT_FINITE, is_finite, next_tokens
from gptmill.runtime.session import OnnxDecoder
from gptmill.serve.metrics import Meter
from gptmill.serve.prefill import Grouping, Pace, Prefill
from gptmill.serve.prefix_cache import PrefixCache
from gptmill.serve.request import Busy, Request, Slot
from gptmill.tokenizer import Tokenizer

SHUTTING_DOWN = "the server is shutting down"
CLIENT_SHARE = 0.75  # of the queue, for one client's requests
PREFILL_TOKENS = 2048  # padded tokens of one prefill
LITTLE_TOKENS = 128  # padded ones that are not worth a prefill of their own

log = logging.getLogger("gptmill.serve")


class Engine:
    """Runs the requests of one language model.

    Args:
        decoder: an empty one.
        max_batch: requests that run at the same time.
        max_queue: requests that wait beyond those.
        prefix_bytes: of keys and values kept for prompts to come.
    """

    def __init__(
        self,
        decoder: OnnxDecoder,
        tokenizer: Tokenizer,
        meter: Meter,
        *,
        max_batch: int,
        max_queue: int,
        prefix_bytes: int = 0,
    ) -> None:
        self._decoder, self._entrance = decoder, decoder.sibling()
        self._tokenizer, self._meter = tokenizer, meter
        self._max_batch, self._max_queue = max_batch, max_queue
        self._prefixes = PrefixCache(prefix_bytes)
        self._pace = Pace()
        self._live: set[Slot] = set()  # all that have not ended
        self._waiting: deque[Slot] = deque()
        self._sliding: list[Slot] = []  # they ran, and their window was cut
        self._entering: Prefill | None = None
        self._running: list[Slot] = []  # in the order of the decoder's rows
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
        slots = [Slot(request, self._tokenizer) for request in requests]
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
            self._enter(self._entering, self._pace.tokens if self._running else PREFILL_TOKENS)
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

    def _next_group(self) -> list[Slot]:
        """Who enters next: those that slid, then the client with the fewest that run, of those the
        one whose turn is longest ago; of a client's requests the first that came."""
        group: list[Slot] = []
        grouping = Grouping(self._prefixes, PREFILL_TOKENS, LITTLE_TOKENS)
        with self._changed:
            held = Counter(slot.request.client for slot in [*self._running, *self._sliding])
            while self._sliding or self._waiting:
                queue = self._sliding or self._waiting
                slot = min(queue, key=lambda slot: (held[slot.request.client], self._turn(slot)))
                free = self._max_batch - len(self._running) - len(group)
                if free <= 0 or not grouping.takes(slot.sequence.window()):
                    break
                group.append(slot)
                queue.remove(slot)
                held[slot.request.client] += 1
                self._turns[slot.request.client] = next(self._count)
        return group

    def _turn(self, slot: Slot) -> int:
        return self._turns.get(slot.request.client, -1)

    def _begin(self, group: list[Slot]) -> Prefill:
        """Start on the windows of a group, behind what is known of them."""
        prefill = Prefill(group, self._prefixes)
        for slot, row in zip(group, prefill.shared):
            if not slot.started:
                slot.started = time.monotonic()
                slot.reused = int(prefill.reused[row])
                self._meter.entered(slot.prompt_tokens, slot.reused)
        self._entrance.begin(prefill.padding, prefill.held)
        return prefill

    def _enter(self, prefill: Prefill, tokens: int) -> None:
        """Read so many more padded tokens; with the last ones, choose the next of each slot and
        join those that go on."""
        self._entering = None
        group = prefill.group
        try:
            piece = prefill.take(tokens)
            with self._pace.reading(piece.size):
                logits = self._entrance.extend(piece)[:, 0]
            for row in np.flatnonzero(is_finite(logits)).tolist():
                self._remember(prefill.windows[row], self._entrance, row)
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

    def _enter_alone(self, slots: list[Slot]) -> None:
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
            with self._pace.stepping():
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

    def _advance(self, slots: list[Slot], logits: np.ndarray) -> None:
        # A padded vocabulary has entries that no tokenizer can decode.
        logits = logits[:, : self._tokenizer.vocabulary_size]
        allowed = logits.copy() if any(slot.is_restricted for slot in slots) else logits
        for row, slot in enumerate(slots):
            slot.restrict(allowed[row : row + 1])
        for row in np.flatnonzero(~is_finite(allowed)).tolist():
            slots[row].fail(UserError(NOT_FINITE))
        rows = [row for row, slot in enumerate(slots) if not slot.done]
        samplers = [slots[row].sampler for row in rows]
        for row, token in zip(rows, next_tokens(allowed[rows], samplers).tolist()):
            slots[row].advance(token, logits[row])
        self._meter.chosen(len(slots))

    def _retain(self, without: Sequence[Slot] = ()) -> None:
        """Free the rows of slots that are done or leave."""
        slots = self._running
        rows = [at for at, slot in enumerate(slots) if not slot.done and slot not in without]
        for row, slot in enumerate(slots):
            if slot.done and not slot.failed:
                self._remember(slot.sequence.window(), self._decoder, row)
        if len(rows) < len(slots):
            self._decoder.keep(np.array(rows, np.int64))
            self._running = [slots[row] for row in rows]

    def _remember(self, window: Sequence[int], decoder: OnnxDecoder, row: int) -> None:
        """Keep what a decoder's row holds of a window, for prompts that begin like it."""
        ids = window[: decoder.held_by(row)]
        self._prefixes.store(ids, partial(decoder.read, row))
        self._meter.kept(self._prefixes.bytes)

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            for slot in self._live:
                slot.fail(error)
            self._live.clear()
            self._waiting.clear()
        self._sliding, self._running, self._entering = [], [], None
        self._decoder.keep(np.array([], np.int64))
        self._prefixes.clear()
        self._meter.depths(0, 0)
