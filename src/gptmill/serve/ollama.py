"""Ollama's protocol: `/api/chat`, `/api/generate`, and what its clients ask about models.

Durations are nanoseconds.
"""

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from gptmill.serve.answer import Answer
from gptmill.serve.answering import client_of, respond
from gptmill.serve.engine import Piece
from gptmill.serve.language_model import Ask, LanguageModel
from gptmill.serve.ollama_body import (
    Asked,
    Chat,
    Generate,
    Named,
    ask_of,
    is_empty,
    refuse_unsupported,
)
from gptmill.serve.ollama_models import listed, running, shown
from gptmill.serve.refusal import Refused
from gptmill.serve.scores import Scored
from gptmill.serve.service import Service
from gptmill.tokenizer import Tokenizer

NANOSECONDS = 1_000_000_000


def routes(service: Service) -> APIRouter:
    """Ollama's paths over a service."""
    router = APIRouter()

    @router.post("/api/chat")
    async def chat(body: Chat, http: Request) -> Response:
        return await _answer(service, body, http, _chat_piece)

    @router.post("/api/generate")
    async def generate(body: Generate, http: Request) -> Response:
        return await _answer(service, body, http, _generate_piece)

    @router.head("/api/tags", include_in_schema=False)
    @router.get("/api/tags")
    def tags() -> dict[str, Any]:
        return {"models": [listed(card) for card in service.catalogue]}

    @router.get("/api/ps")
    def ps() -> dict[str, Any]:
        return {"models": [running(card, until) for card, until in service.opened()]}

    @router.post("/api/show")
    def show(body: Named) -> dict[str, Any]:
        return shown(service.card(body.model or body.name))

    @router.head("/api/version", include_in_schema=False)
    @router.get("/api/version")
    def version() -> dict[str, str]:
        return {"version": package_version("gptmill")}

    return router


@dataclass
class _Exchange:
    """One request under way, and how its protocol words it."""

    body: Asked
    model: LanguageModel
    ask: Ask
    load_seconds: float
    started: float
    word: Callable[[str], dict[str, Any]]  # a piece of text as the protocol wraps it
    answer: Answer = field(init=False)


async def _answer(service: Service, body: Asked, http: Request, word) -> Response:
    started, deadline = time.monotonic(), service.deadline()
    refuse_unsupported(body)
    if is_empty(body) and body.keep_alive == 0:
        service.keep(service.card(body.model), 0)
        return _nothing(body, word, "unload")
    async with service.using(body.model, deadline, body.keep_alive) as model:
        loaded = time.monotonic() - started
        if is_empty(body):
            return _nothing(body, word, "load")
        ask = await service.work(deadline, ask_of, body, model, service.limits.max_tokens)
        exchange = _Exchange(body, model, ask, loaded, started, word)
        [exchange.answer] = await service.ask(
            model, [ask], deadline, client_of(http), stream=body.stream
        )
    return await respond(
        http,
        exchange.answer,
        stream=body.stream,
        media_type="application/x-ndjson",
        chunks=lambda: _lines(exchange),
        whole=lambda: _whole(exchange),
    )


def _nothing(body: Asked, word, reason: str) -> Response:
    return JSONResponse({**_head(body), **word(""), "done": True, "done_reason": reason})


async def _lines(exchange: _Exchange) -> AsyncIterator[bytes]:
    try:
        async for piece in exchange.answer.pieces():
            yield _line({**_message(exchange, piece), "done": False})
        yield _line({**_message(exchange, Piece("", [])), **_done(exchange)})
    except Refused as error:
        yield _line({"error": error.message})


async def _whole(exchange: _Exchange) -> dict[str, Any]:
    whole = await exchange.answer.whole()
    return {**_message(exchange, whole), **_done(exchange)}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _head(body: Asked) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"model": body.model, "created_at": now}


def _message(exchange: _Exchange, piece: Piece) -> dict[str, Any]:
    value = {**_head(exchange.body), **exchange.word(piece.text)}
    if piece.scored:
        value["logprobs"] = [_logprob(exchange.model.tokenizer, scored) for scored in piece.scored]
    return value


def _done(exchange: _Exchange) -> dict[str, Any]:
    finished = exchange.answer.finished
    value = {
        "done": True,
        "done_reason": "length" if finished.reason == "length" else "stop",
        "total_duration": _nanoseconds(time.monotonic() - exchange.started),
        "load_duration": _nanoseconds(exchange.load_seconds),
        "prompt_eval_count": finished.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(finished.prompt_seconds),
        "eval_count": len(finished.ids),
        "eval_duration": _nanoseconds(finished.seconds),
    }
    if isinstance(exchange.body, Generate) and not exchange.body.raw:
        value["context"] = exchange.ask.prompt_ids + finished.ids
    return value


def _nanoseconds(seconds: float) -> int:
    return int(seconds * NANOSECONDS)


def _logprob(tokenizer: Tokenizer, scored: Scored) -> dict[str, Any]:
    value = _token(tokenizer, scored.chosen)
    if scored.top:
        value["top_logprobs"] = [_token(tokenizer, candidate) for candidate in scored.top]
    return value


def _token(tokenizer: Tokenizer, candidate) -> dict[str, Any]:
    raw = tokenizer.decode_bytes([candidate.id])
    return {
        "token": raw.decode("utf-8", errors="replace"),
        "logprob": candidate.logprob,
        "bytes": list(raw),
    }


def _chat_piece(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _generate_piece(text: str) -> dict[str, Any]:
    return {"response": text}
