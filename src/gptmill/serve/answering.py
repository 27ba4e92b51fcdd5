"""One way down for every protocol: from a body to answers, and from answers to what is sent.

A protocol is a `Question`, which says what a body means to a model, and a `Wording`, which says how
the answers look. Answers end when their client leaves.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from gptmill.serve.answer import Answer
from gptmill.serve.guard import CLIENT_LEFT
from gptmill.serve.language_model import Ask, LanguageModel
from gptmill.serve.refusal import Refused
from gptmill.serve.request import Finished, Piece
from gptmill.serve.service import Service
from gptmill.serve.tracing import note

Result = TypeVar("Result")


class Question(Protocol):
    """A body that wants text: `tries` answers to each of its prompts, of which `n` are kept."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def stream(self) -> bool:
        """Whether the answers are sent as they come."""

    @property
    def n(self) -> int:
        """Answers to each prompt that are kept."""

    @property
    def keep_alive(self) -> float | None:
        """Seconds that the model stays open; None for as long as the server."""

    @property
    def tries(self) -> int:
        """Answers to each prompt that are computed."""

    @property
    def keeps_scores(self) -> bool:
        """Whether the scores of tokens are for the client, not for choosing among tries alone."""

    def asks(self, model: LanguageModel, limit: int) -> list[Ask]:
        """What it means to a model; `limit` is how many tokens the server allows."""


@dataclass(frozen=True)
class Exchange:
    """One question under way: when it came (`time.monotonic()`), and how long loading took."""

    question: Any
    model: LanguageModel
    asks: list[Ask]
    started: float
    load_seconds: float


class Usage(NamedTuple):
    """Tokens of a whole answer; `reused` are those of the prompt that were known, as soon as an
    answer has ended."""

    prompt: int
    generated: int
    reused: int | None = None

    @property
    def total(self) -> int:
        return self.prompt + self.generated


class Wording(Protocol):
    """How a protocol words the answers to one question, which are numbered from 0."""

    media_type: str

    def chunk(self, index: int, piece: Piece) -> bytes:
        """A piece of a stream."""

    def end(self, index: int, finished: Finished) -> bytes:
        """The end of one answer in a stream."""

    def last(self, usage: Usage) -> bytes:
        """The end of the stream."""

    def error(self, error: Refused) -> bytes:
        """A failure in the midst of a stream, which ends it."""

    def whole(self, answers: Sequence[tuple[Piece, Finished]], usage: Usage) -> dict[str, Any]:
        """All answers at once."""


def streamed(media_type: str) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of a path that may stream."""
    return {200: {"content": {media_type: {}}}}


async def reply(
    service: Service, question: Question, http: Request, wording: Callable[[Exchange], Wording]
) -> Response:
    """The answers to a question as they come, or in one. What fails before the first token has a
    status."""
    started, deadline = time.monotonic(), service.deadline()
    async with service.using(question.model, deadline, question.keep_alive) as model:
        loaded = time.monotonic() - started
        asks = await service.work(deadline, question.asks, model, service.limits.max_tokens)
        client, stream = client_of(http), question.stream
        answers = await service.ask(model, asks, deadline, client, stream=stream)
    exchange = Exchange(question, model, asks, started, loaded)
    answering = Answering(answers, question, wording(exchange))
    try:
        await until_gone(http, answering.ready())
        if stream:
            return Stream(answering)
        return JSONResponse(await until_gone(http, answering.whole()))
    except BaseException:
        answering.cancel()
        raise


class Answering:
    """The answers to one question, prompt after prompt, and their wording."""

    def __init__(self, answers: list[Answer], question: Question, wording: Wording) -> None:
        self._answers, self._question, self.wording = answers, question, wording

    async def ready(self) -> None:
        """Wait for the first event of each; see `Answer.ready`."""
        await asyncio.gather(*(answer.ready() for answer in self._answers))

    def cancel(self) -> None:
        """Free what the answers hold."""
        for answer in self._answers:
            answer.cancel()

    async def stream(self) -> AsyncIterator[bytes]:
        """Pieces as they come; the answers take turns."""
        try:
            async for index, piece in _together(self._answers):
                if piece is None:
                    yield self.wording.end(index, self._answers[index].finished)
                else:
                    yield self.wording.chunk(index, piece)
            yield self.wording.last(self._usage())
        except Refused as error:
            yield self.wording.error(error)

    async def whole(self) -> dict[str, Any]:
        """All answers in one; of several tries those whose tokens are likeliest on average."""
        pieces = await asyncio.gather(*(answer.whole() for answer in self._answers))
        tries, n = self._question.tries, self._question.n
        kept: list[int] = []
        for first in range(0, len(pieces), tries):
            group = list(range(first, first + tries))
            if tries > n:
                group = sorted(group, key=lambda at: -_mean_logprob(pieces[at]))[:n]
            kept += group
        answers = [(self._as_asked(pieces[at]), self._answers[at].finished) for at in kept]
        return self.wording.whole(answers, self._usage())

    def _as_asked(self, piece: Piece) -> Piece:
        return piece if self._question.keeps_scores else piece._replace(scored=[])

    def _usage(self) -> Usage:
        ends = [answer.finished for answer in self._answers]
        read = sum(end.prompt_tokens for end in ends[:: self._question.tries])
        reused = sum(end.reused for end in ends[:: self._question.tries])
        usage = Usage(read, sum(len(end.ids) for end in ends), reused)
        note(
            gen_ai__request__model=self._question.model,
            gen_ai__usage__input_tokens=usage.prompt,
            gen_ai__usage__output_tokens=usage.generated,
            gptmill__queue_seconds=max(end.waited for end in ends),
            gptmill__prompt_seconds=max(end.prompt_seconds for end in ends),
        )
        return usage


class Stream(StreamingResponse):
    """Answers sent as they come, and canceled however their sending ends."""

    def __init__(self, answering: Answering) -> None:
        # Proxies that buffer would hold back what is meant to come at once.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        media_type = answering.wording.media_type
        super().__init__(answering.stream(), media_type=media_type, headers=headers)
        self._answering = answering

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answering.cancel()


async def _together(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, Piece | None]]:
    """The pieces of several answers as they come, by the answer's index, and None at each end."""
    coming = {asyncio.ensure_future(one.next_piece()): at for at, one in enumerate(answers)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=coming.__getitem__):
                index, piece = coming.pop(task), task.result()
                if piece is not None:
                    coming[asyncio.ensure_future(answers[index].next_piece())] = index
                yield index, piece
    finally:
        for task in coming:
            task.cancel()


def _mean_logprob(piece: Piece) -> float:
    logprobs = [one.chosen.logprob for one in piece.scored if one.chosen.logprob is not None]
    return sum(logprobs) / max(1, len(logprobs))


async def until_gone(http: Request, work: Awaitable[Result]) -> Result:
    """The result of some work, given up when the client leaves."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(CLIENT_LEFT, "the client left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def client_of(http: Request) -> str:
    """Who asks, as far as places are shared: the address."""
    return http.client.host if http.client else ""
