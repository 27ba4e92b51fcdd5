"""OpenAI's protocol: `/v1/chat/completions`, `/v1/completions`, `/v1/models`."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gptmill.serve.answer import Answer
from gptmill.serve.answering import client_of, respond
from gptmill.serve.catalogue import Card
from gptmill.serve.engine import Piece
from gptmill.serve.openai_body import Chat, Completion
from gptmill.serve.openai_wording import ChatWording, CompletionWording, Wording
from gptmill.serve.refusal import Refused, error_body
from gptmill.serve.service import Service


def routes(service: Service) -> APIRouter:
    """OpenAI's paths over a service."""
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions")
    async def chat(body: Chat, http: Request) -> Response:
        return await _answer(service, body, http)

    @router.post("/completions")
    async def complete(body: Completion, http: Request) -> Response:
        return await _answer(service, body, http)

    @router.get("/models")
    def models() -> dict[str, Any]:
        cards = [card for card in service.catalogue if not card.is_classifier]
        return {"object": "list", "data": [_listed(card) for card in cards]}

    @router.get("/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        return _listed(service.card(name))

    return router


def _listed(card: Card) -> dict[str, Any]:
    created = int(card.modified.timestamp())
    return {"id": card.name, "object": "model", "created": created, "owned_by": "gptmill"}


async def _answer(service: Service, body: Chat | Completion, http: Request) -> Response:
    deadline = service.deadline()
    async with service.using(body.model, deadline) as model:
        asks = await service.work(deadline, body.asks, model, service.limits.max_tokens)
        answers = await service.ask(model, asks, deadline, client_of(http), stream=body.stream)
    answer_id = secrets.token_hex(12)
    kind = ChatWording if isinstance(body, Chat) else CompletionWording
    wordings = [
        kind(body.model, model, answer_id, index)
        for index in range(len(answers) // body.tries * body.n)
    ]
    choices = Choices(answers, wordings, body)
    return await respond(
        http,
        choices,
        stream=body.stream,
        media_type="text/event-stream",
        chunks=choices.events,
        whole=choices.whole,
    )


class Choices:
    """The answers to one request, prompt after prompt, and how each is worded.

    Args:
        answers: `body.tries` of each prompt.
        wordings: of the choices, `body.n` of each prompt.
    """

    def __init__(
        self, answers: list[Answer], wordings: Sequence[Wording], body: Chat | Completion
    ) -> None:
        self._answers, self._wordings, self._body = answers, wordings, body

    async def ready(self) -> None:
        """Wait for the first event of each; see `Answer.ready`."""
        await asyncio.gather(*(answer.ready() for answer in self._answers))

    def cancel(self) -> None:
        """Free what the answers hold."""
        for answer in self._answers:
            answer.cancel()

    async def events(self) -> AsyncIterator[bytes]:
        """The stream, in which choices take turns as their tokens come."""
        usage = self._body.stream_options.include_usage
        nothing = {"usage": None} if usage else {}
        try:
            async for index, piece in _together(self._answers):
                reason = _reason(self._answers[index]) if piece is None else None
                yield _event({**self._wordings[index].chunk(piece, reason), **nothing})
            if usage:
                wording = self._wordings[0]
                empty = wording.envelope(wording.chunk_object, [])
                yield _event({**empty, "usage": self._usage()})
            yield b"data: [DONE]\n\n"
        except Refused as error:
            yield _event(error_body("/v1/", error))

    async def whole(self) -> dict[str, Any]:
        """All choices in one; of `best_of` those whose tokens are likeliest on average."""
        pieces = await asyncio.gather(*(answer.whole() for answer in self._answers))
        tries, kept = self._body.tries, []
        for first in range(0, len(pieces), tries):
            group = range(first, first + tries)
            if tries > self._body.n:
                group = sorted(group, key=lambda at: -_mean_logprob(pieces[at]))[: self._body.n]
            kept += group
        choices = [
            wording.choice(self._as_asked(pieces[at]), _reason(self._answers[at]))
            for at, wording in zip(kept, self._wordings, strict=True)
        ]
        wording = self._wordings[0]
        return {**wording.envelope(wording.whole_object, choices), "usage": self._usage()}

    def _as_asked(self, piece: Piece) -> Piece:
        """Without the scores that only `best_of` needed."""
        return piece if self._body.logprobs is not None else piece._replace(scored=[])

    def _usage(self) -> dict[str, int]:
        read = sum(one.finished.prompt_tokens for one in self._answers[:: self._body.tries])
        written = sum(len(answer.finished.ids) for answer in self._answers)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


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


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _reason(answer: Answer) -> str:
    return "length" if answer.finished.reason == "length" else "stop"
