"""From a request's meaning to its answer, whatever protocol it came in."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.generate.sampling import SamplingOptions
from gptmill.onnx.session import Classification, Classifier, Generator
from gptmill.serve.catalogue import Card, Catalogue
from gptmill.serve.constraint import Grammars
from gptmill.serve.engine import Busy, Engine, Event, Finished, Overdue, Piece, Request
from gptmill.serve.metrics import Meter, Metrics

RETRY_SECONDS = 1


class Refused(Exception):
    """A request that gets an error for an answer: HTTP status, message, and perhaps the code that
    OpenAI's protocol names it by."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Limits:
    """What one server allows.

    Args:
        max_batch: requests of one model that run at the same time.
        max_queue: requests of one model that wait beyond those.
        max_tokens: tokens of one response.
        timeout: seconds of one request, waiting included.
        threads: CPU threads of one model; None takes every physical core.
    """

    max_batch: int = 16
    max_queue: int = 128
    max_tokens: int = 2048
    timeout: float = 300.0
    threads: int | None = None


@dataclass(frozen=True)
class Ask:
    """One request to a language model, its prompt already in tokens."""

    prompt_ids: list[int]
    options: SamplingOptions
    context_length: int
    top_candidates: int | None = None
    schema: dict[str, Any] | None = None


class LanguageModel:
    """An open model: its tokenizer, how it is asked, and its engine."""

    def __init__(self, card: Card, limits: Limits, metrics: Metrics) -> None:
        started = time.monotonic()
        generator = Generator(card.folder, limits.threads, spin=False)
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
        )
        self._grammars: Grammars | None = None
        self._grammars_lock = threading.Lock()
        self.load_seconds = time.monotonic() - started

    def constraint(self, schema: dict[str, Any]):
        """What holds one response to a schema; see `Grammars.constraint`."""
        with self._grammars_lock:
            self._grammars = self._grammars or Grammars(self.tokenizer)
        return self._grammars.constraint(schema)


class Answer:
    """The pieces of one answer as they come; whoever stops listening says `cancel`.

    `finished` says how it ended, once the pieces are through.
    """

    finished: Finished

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._head: Event | None = None
        self.request: Request | None = None

    def put(self, event: Event) -> None:
        """Called from the engine's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def ready(self) -> None:
        """Wait for the first event, so that what fails at once has a status of its own."""
        self._head = await self._next()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Text until the end.

        Raises:
            Refused: the time is over, the server closes, or the model fails.
        """
        while True:
            event, self._head = self._head or await self._next(), None
            if isinstance(event, Finished):
                self.finished = event
                return
            yield event

    async def whole(self) -> Piece:
        """All pieces as one. Raises what `pieces` does."""
        pieces = [piece async for piece in self.pieces()]
        scored = [one for piece in pieces for one in piece.scored]
        return Piece("".join(piece.text for piece in pieces), scored)

    def cancel(self) -> None:
        """Free what the answer holds; harmless after its end."""
        if self.request:
            self.request.cancelled = True

    async def _next(self) -> Piece | Finished:
        event = await self._events.get()
        if isinstance(event, Exception):
            raise refusal(event)
        return event


def refusal(error: Exception) -> Refused:
    """What a client is told about an error."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(503, f"{error}: try again in a moment", "overloaded")
    if isinstance(error, Overdue):
        return Refused(504, "the request took longer than this server allows", "timeout")
    if isinstance(error, UserError):
        return Refused(400, str(error))
    return Refused(500, f"the model failed: {type(error).__name__}: {error}")


class Service:
    """The models of a folder, opened when they are first asked.

    Raises:
        UserError: there is no model.
    """

    def __init__(self, models: Path, limits: Limits) -> None:
        self.catalogue = Catalogue(models)
        self.limits = limits
        self.metrics = Metrics()
        self._open: dict[str, LanguageModel | Classifier] = {}
        self._opening = threading.Lock()
        self._classifying = asyncio.Semaphore(1)
        self._classifications = 0

    def card(self, name: str) -> Card:
        """A model by its name; 404 if there is none."""
        card = self.catalogue.find(name)
        if card is None:
            raise Refused(404, f"model '{name}' not found", "model_not_found")
        return card

    def opened(self) -> list[Card]:
        """The models in memory."""
        return [card for card in self.catalogue if card.name in self._open]

    async def language_model(self, name: str) -> LanguageModel:
        """An open language model; 400 if it is none."""
        card = self.card(name)
        if card.is_classifier:
            raise Refused(400, f"'{name}' is a classifier: ask /classify")
        return await self._opened(card)

    async def classify(self, name: str | None, texts: list[str]) -> list[Classification]:
        """The labels of texts, by the named classifier or else the first."""
        card = self.card(name) if name else self._first_classifier()
        if not card.is_classifier:
            raise Refused(400, f"'{card.name}' is no classifier")
        if self._classifications >= self.limits.max_queue:
            raise refusal(Busy(f"{self._classifications} classifications wait already"))
        self._classifications += 1
        try:
            classifier = await self._opened(card)
            async with self._classifying:  # one alone has every core
                return await asyncio.to_thread(classifier.classify, texts)
        finally:
            self._classifications -= 1

    async def ask(self, model: LanguageModel, ask: Ask) -> Answer:
        """Send a request on its way; 503 if too many wait, 400 if its schema cannot be kept."""
        answer = Answer()
        constraint = None
        if ask.schema is not None:
            constraint = await asyncio.to_thread(model.constraint, ask.schema)
        answer.request = Request(
            ask.prompt_ids,
            ask.options,
            ask.context_length,
            time.monotonic() + self.limits.timeout,
            answer.put,
            ask.top_candidates,
            constraint,
        )
        try:
            model.engine.submit(answer.request)
        except Busy as error:
            raise refusal(error) from None
        return answer

    def close(self) -> None:
        """End all requests."""
        for model in self._open.values():
            if isinstance(model, LanguageModel):
                model.engine.close()

    async def _opened(self, card: Card) -> LanguageModel | Classifier:
        return self._open.get(card.name) or await asyncio.to_thread(self._load, card)

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
            return Classifier(card.folder, self.limits.threads, spin=False)
        return LanguageModel(card, self.limits, self.metrics)

    def _first_classifier(self) -> Card:
        for card in self.catalogue:
            if card.is_classifier:
                return card
        raise Refused(404, "this server has no classifier")
