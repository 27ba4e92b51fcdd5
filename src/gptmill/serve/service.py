"""From a request's meaning to its answer, whatever protocol it came in."""

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gptmill.errors import UserError
from gptmill.runtime.session import Classification, Classifier
from gptmill.serve.answer import Answer
from gptmill.serve.catalogue import Card, Catalogue
from gptmill.serve.engine import SHUTTING_DOWN
from gptmill.serve.language_model import Ask, LanguageModel, Limits
from gptmill.serve.logs import request_id
from gptmill.serve.metrics import Metrics
from gptmill.serve.refusal import Refused, refusal
from gptmill.serve.request import Busy, Finished, Request

TOGETHER = 32  # texts classified or embedded between two looks at the clock
LOOK_AGAIN = 0.2  # seconds until a busy model that is to be unloaded is looked at again
# Schemas have threads of their own: the slowest of them hold up no plain text.
TEXT_THREADS, SCHEMA_THREADS = 4, 2

Result = TypeVar("Result")
Model = TypeVar("Model", LanguageModel, Classifier)


class Service:
    """The models of a folder, opened when they are first asked.

    Raises:
        UserError: there is no model.
    """

    def __init__(self, models: Path, limits: Limits) -> None:
        self.catalogue = Catalogue(models)
        self.limits = limits
        self.metrics = Metrics()
        self.draining = False
        self._open: dict[str, LanguageModel | Classifier] = {}
        self._opening = threading.Lock()
        self._preparing: Counter[str] = Counter()  # requests that are not with their engine yet
        self._ends: dict[str, tuple[asyncio.TimerHandle, datetime]] = {}
        self._computing = asyncio.Semaphore(1)  # what no engine does: one has every core
        self._classifications = 0
        self._texts = ThreadPoolExecutor(TEXT_THREADS, "gptmill text")
        self._schemas = ThreadPoolExecutor(SCHEMA_THREADS, "gptmill schema")

    def card(self, name: str) -> Card:
        """A model by its name; 404 if there is none."""
        card = self.catalogue.find(name)
        if card is None:
            raise Refused(404, f"model '{name}' not found", "model_not_found", "model")
        return card

    def opened(self) -> list[tuple[Card, datetime | None]]:
        """The models in memory, and when each will be unloaded; None for never."""
        there = [card for card in self.catalogue if card.name in self._open]
        return [(card, self._ends.get(card.name, (None, None))[1]) for card in there]

    def deadline(self) -> float:
        """When a request that comes now is over, as `time.monotonic()` counts."""
        return time.monotonic() + self.limits.timeout

    @asynccontextmanager
    async def using(
        self, name: str, deadline: float, keep_alive: float | None = None
    ) -> AsyncIterator[LanguageModel]:
        """An open language model, which stays open while a request for it is prepared.

        Args:
            keep_alive: seconds that it stays when nobody uses it; None for as long as the server.

        Raises:
            Refused: 404 or 400 if it is none, 503 if as many requests are there as may.
        """
        card = self.card(name)
        if card.is_classifier:
            raise Refused(400, f"'{name}' is a classifier: ask /classify")
        self._admit(card)
        self._preparing[card.name] += 1
        try:
            yield await self._within(deadline, self._opened(card, LanguageModel))
        finally:
            self._preparing[card.name] -= 1
            self.keep(card, math.inf if keep_alive is None else keep_alive)

    async def work(
        self, deadline: float, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """Do something with texts off the event loop; 504 where it takes longer than it may."""
        return await self._in_thread(self._texts, deadline, function, *arguments)

    async def ask(
        self, model: LanguageModel, asks: list[Ask], deadline: float, client: str, *, stream: bool
    ) -> list[Answer]:
        """Send the requests of one answer on their way, all or none; 503 if too many wait, 400 if a
        schema cannot be kept."""
        answers = [await self._answer(model, ask, deadline, client, stream) for ask in asks]
        requests = [answer.request for answer in answers if answer.request is not None]
        try:
            if requests:
                model.engine.submit(*requests)
        except Busy as error:
            raise refusal(error) from None
        return answers

    async def _answer(
        self, model: LanguageModel, ask: Ask, deadline: float, client: str, stream: bool
    ) -> Answer:
        answer, constraint = Answer(), None
        if ask.opening is not None:
            answer.put(ask.opening)
        if not ask.generates:
            answer.put(Finished("length", [], len(ask.prompt_ids), 0, 0, 0))
            return answer
        if ask.schema is not None:
            constraint = await self._in_thread(
                self._schemas, deadline, model.constraint, ask.schema, deadline
            )
        answer.request = Request(
            ask.prompt_ids,
            ask.options,
            ask.context_length,
            deadline,
            answer.put,
            ask.top_candidates,
            constraint,
            ask.score_end,
            client,
            ask.adjustment,
            stream,
            ask.index,
            request_id.get(),
        )
        return answer

    async def classify(self, name: str | None, texts: list[str]) -> list[Classification]:
        """The labels of texts, by the named classifier or else the first."""
        card = self.card(name) if name else self._first_classifier()
        if not card.is_classifier:
            raise Refused(400, f"'{card.name}' is no classifier")
        if self._classifications >= self.limits.max_queue:
            raise refusal(Busy(f"{self._classifications} classifications wait already"))
        self._classifications += 1
        try:
            return await self._within(self.deadline(), self._classified(card, texts))
        finally:
            self._classifications -= 1

    async def _classified(self, card: Card, texts: list[str]) -> list[Classification]:
        classifier = await self._opened(card, Classifier)
        results = []
        async with self._computing:
            for at in range(0, len(texts), TOGETHER):
                part = texts[at : at + TOGETHER]
                results += await asyncio.to_thread(_classify, classifier, part, at)
        return results

    async def embed(
        self, model: LanguageModel, texts: list[list[int]], deadline: float
    ) -> np.ndarray:
        """The vectors [texts, C] of texts, 504 where they take too long."""
        return await self._within(deadline, self._embedded(model, texts))

    async def _embedded(self, model: LanguageModel, texts: list[list[int]]) -> np.ndarray:
        vectors = np.empty((len(texts), model.width), np.float32)
        async with self._computing:
            for at in range(0, len(texts), TOGETHER):
                part = texts[at : at + TOGETHER]
                vectors[at : at + TOGETHER] = await asyncio.to_thread(model.embed, part)
        self.metrics.tokens.labels(model.card.name, "embedded").inc(sum(map(len, texts)))
        return vectors

    def keep(self, card: Card, seconds: float) -> None:
        """Unload a model when nobody has used it for so long; infinity is never."""
        timer, _ = self._ends.pop(card.name, (None, None))
        if timer is not None:
            timer.cancel()
        if math.isfinite(seconds) and card.name in self._open:
            self._end_later(card, seconds, seconds)

    def _end_later(self, card: Card, seconds: float, keep: float) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, self._end_if_idle, card, keep)
        self._ends[card.name] = timer, datetime.now(UTC) + timedelta(seconds=seconds)

    def _end_if_idle(self, card: Card, keep: float) -> None:
        del self._ends[card.name]
        model = self._open.get(card.name)
        if not isinstance(model, LanguageModel):
            return
        if self._preparing[card.name] or model.engine.count():
            return self._end_later(card, max(keep, LOOK_AGAIN), keep)
        del self._open[card.name]
        self._texts.submit(model.close)

    def drain(self) -> None:
        """Take no more requests, and end those that wait; the running ones go on."""
        self.draining = True
        for model in list(self._open.values()):
            if isinstance(model, LanguageModel):
                model.engine.drain()

    def close(self) -> None:
        """End all requests."""
        for model in list(self._open.values()):
            if isinstance(model, LanguageModel):
                model.close()
        for pool in (self._texts, self._schemas):
            pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self, card: Card) -> None:
        """Nothing is read, rendered or built for a request that will find no place."""
        if self.draining:
            raise refusal(Busy(SHUTTING_DOWN))
        model = self._open.get(card.name)
        running = model.engine.count() if isinstance(model, LanguageModel) else 0
        there = self._preparing[card.name] + running
        if there >= self.limits.max_batch + self.limits.max_queue:
            limits = self.limits
            busy = f"{limits.max_batch} requests run and {limits.max_queue} wait already"
            raise refusal(Busy(busy))

    async def _within(self, deadline: float, work) -> Any:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await work
        except TimeoutError as error:
            raise refusal(error) from None

    async def _in_thread(self, pool: Executor, deadline: float, function, *arguments) -> Any:
        loop = asyncio.get_running_loop()
        return await self._within(deadline, loop.run_in_executor(pool, function, *arguments))

    async def _opened(self, card: Card, kind: type[Model]) -> Model:
        model = self._open.get(card.name)
        if model is None:
            model = await asyncio.to_thread(self._load, card)
        if not isinstance(model, kind):
            raise TypeError(f"{card.name} is a {type(model).__name__}, not a {kind.__name__}")
        return model

    def _load(self, card: Card) -> LanguageModel | Classifier:
        with self._opening:
            if card.name not in self._open:
                try:
                    self._open[card.name] = self._model(card)
                except UserError as error:  # the model's fault, not the request's
                    raise Refused(500, str(error)) from None
            return self._open[card.name]

    def _model(self, card: Card) -> LanguageModel | Classifier:
        if card.is_classifier:
            return Classifier(card.folder, self.limits.threads)
        return LanguageModel(card, self.limits, self.metrics)

    def _first_classifier(self) -> Card:
        for card in self.catalogue:
            if card.is_classifier:
                return card
        raise Refused(404, "this server has no classifier")


def _classify(classifier: Classifier, texts: list[str], first: int) -> list[Classification]:
    """The labels of some texts of a request, of which `first` is the first one's number."""
    for number, text in enumerate(texts, start=first):
        if not text:
            raise UserError(f"text {number} is empty: there is nothing to classify")
    return classifier.classify(texts)
