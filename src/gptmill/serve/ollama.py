"""Ollama's protocol: `/api/chat`, `/api/generate`, and what its clients ask about models.

Durations are nanoseconds. Defaults of sampling are Ollama's own, except that repeats are not
penalised: models of this size copy names and numbers on purpose.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from gptmill.generate.sampling import SamplingOptions
from gptmill.prompt import format_prompt
from gptmill.serve.answering import check_extra, respond, seed_or_random
from gptmill.serve.catalogue import Card
from gptmill.serve.constraint import ANY_OBJECT
from gptmill.serve.engine import Piece, Scored
from gptmill.serve.prompts import Message, conversation_ids
from gptmill.serve.service import Answer, Ask, LanguageModel, Refused, Service
from gptmill.tokenizer import Tokenizer

NANOSECONDS = 1_000_000_000
MAXIMUM_TOP_LOGPROBS = 20
# Options of Ollama's that change how fast an answer comes, or how much memory it takes.
WITHOUT_EFFECT = {
    "numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "vocab_only", "use_mmap", "use_mlock",
    "num_thread", "f16_kv", "num_keep", "penalize_newline", "embedding_only", "logits_all",
}  # fmt: skip
# Options that change the answer and that this server has not, with the values that change nothing.
UNSUPPORTED = {
    "mirostat": (0,), "mirostat_tau": None, "mirostat_eta": None, "typical_p": (1,), "tfs_z": (1,),
    "presence_penalty": (0,), "frequency_penalty": (0,), "repeat_last_n": (-1,),
}  # fmt: skip


class Options(BaseModel):
    """`options` of a request."""

    model_config = ConfigDict(extra="allow")

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    num_predict: int = -1
    num_ctx: int | None = Field(None, ge=1)
    stop: str | list[str] = []


class Asked(BaseModel):
    """What `/api/chat` and `/api/generate` have in common."""

    model: str
    stream: bool = True
    options: Options | None = None
    format: dict[str, Any] | Literal["", "json"] | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAXIMUM_TOP_LOGPROBS)
    truncate: bool = True
    shift: bool = True


class Generate(Asked):
    """`/api/generate`."""

    prompt: str = ""
    system: str = ""
    raw: bool = False
    context: list[int] = []
    suffix: str = ""
    template: str = ""
    images: list[Any] | None = None


class Turn(BaseModel):
    """A message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str = ""
    images: list[Any] | None = None


class Chat(Asked):
    """`/api/chat`."""

    messages: list[Turn] = []
    tools: list[Any] | None = None


class Named(BaseModel):
    """`/api/show`; `name` is the older word for `model`."""

    model: str = ""
    name: str = ""


def routes(service: Service) -> APIRouter:
    """Ollama's paths over a service."""
    router = APIRouter()

    @router.post("/api/chat")
    async def chat(body: Chat, http: Request) -> Response:
        return await _answer(service, body, http, _chat_ids, _chat_piece)

    @router.post("/api/generate")
    async def generate(body: Generate, http: Request) -> Response:
        return await _answer(service, body, http, _generate_ids, _generate_piece)

    @router.api_route("/api/tags", methods=["GET", "HEAD"])
    def tags() -> dict[str, Any]:
        return {"models": [_listed(card) for card in service.catalogue]}

    @router.get("/api/ps")
    def running() -> dict[str, Any]:
        return {"models": [_running(card) for card in service.opened()]}

    @router.post("/api/show")
    def show(body: Named) -> dict[str, Any]:
        return _shown(service.card(body.model or body.name))

    @router.api_route("/api/version", methods=["GET", "HEAD"])
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


async def _answer(service: Service, body: Asked, http: Request, ids_of, word) -> Response:
    started = time.monotonic()
    _refuse_unsupported(body)
    model = await service.language_model(body.model)
    loaded = time.monotonic() - started
    if _is_empty(body):
        done = {"done": True, "done_reason": "load"}
        return JSONResponse({**_head(body), **word(""), **done})
    ids = await asyncio.to_thread(ids_of, body, model)
    exchange = _Exchange(body, model, _ask(body, model, ids, service), loaded, started, word)
    exchange.answer = await service.ask(model, exchange.ask)
    return await respond(
        http,
        exchange.answer,
        stream=body.stream,
        media_type="application/x-ndjson",
        chunks=lambda: _lines(exchange),
        whole=lambda: _whole(exchange),
    )


def _is_empty(body: Asked) -> bool:
    """Whether it only asks to load the model."""
    return not (body.messages if isinstance(body, Chat) else body.prompt or body.context)


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


def _ask(body: Asked, model: LanguageModel, ids: list[int], service: Service) -> Ask:
    options = body.options or Options()
    context = min(options.num_ctx or model.context_length, model.context_length)
    if len(ids) > context and not body.truncate:
        raise Refused(400, f"the prompt has {len(ids)} tokens, the context {context}")
    most = _most_tokens(options.num_predict, service.limits.max_tokens)
    if not body.shift or options.num_predict == -2:
        most = max(1, min(most, context - len(ids)))
    stops = [options.stop] if isinstance(options.stop, str) else options.stop
    sampling = SamplingOptions(
        max_new_tokens=most,
        temperature=options.temperature,
        top_k=max(0, options.top_k),
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repeat_penalty,
        stop_tokens=model.stop_tokens,
        stop_strings=tuple(stop for stop in stops if stop),
        seed=seed_or_random(options.seed),
    )
    schema = ANY_OBJECT if body.format == "json" else body.format or None
    return Ask(ids, sampling, context, body.top_logprobs if body.logprobs else None, schema)


def _most_tokens(wanted: int, limit: int) -> int:
    """Tokens of a response: below 0 is without end, which here ends at the server's limit."""
    return limit if wanted < 0 else min(wanted, limit)


def _chat_ids(body: Chat, model: LanguageModel) -> list[int]:
    if model.prompt_style is None:
        raise Refused(
            400, f'"{body.model}" does not support chat: it continues a text, ask /api/generate'
        )
    return conversation_ids(
        [Message(turn.role, turn.content) for turn in body.messages],
        model.prompt_style,
        model.tokenizer,
        _room(body, model),
    )


def _room(body: Asked, model: LanguageModel) -> int:
    """Tokens of a conversation: the context less a quarter, or less a shorter answer."""
    options = body.options or Options()
    context = min(options.num_ctx or model.context_length, model.context_length)
    return context - _most_tokens(options.num_predict, context // 4)


def _generate_ids(body: Generate, model: LanguageModel) -> list[int]:
    text = body.prompt
    if not body.raw:
        if model.prompt_style is not None:
            text = format_prompt({"instruction": text, "input": ""}, model.prompt_style)
        text = f"{body.system}\n\n{text}" if body.system else text
    if any(not 0 <= id < model.tokenizer.vocabulary_size for id in body.context):
        raise Refused(400, "context has ids that this model has not")
    return [*body.context, *model.tokenizer.encode(text)]


def _refuse_unsupported(body: Asked) -> None:
    """Say no to what would otherwise silently change nothing."""
    for name in ("suffix", "template", "images", "tools", "think"):
        if getattr(body, name, None):
            raise Refused(400, f'"{body.model}" does not support {name}')
    if any(turn.images for turn in getattr(body, "messages", [])):
        raise Refused(400, f'"{body.model}" does not support images')
    if body.options is not None:
        known = list(Options.model_fields)
        check_extra(body.options.model_extra, known, WITHOUT_EFFECT, UNSUPPORTED)


def _details(card: Card) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "onnx",
        "family": "gpt2",
        "families": ["gpt2"],
        "parameter_size": f"{card.parameters / 1e6:.1f}M",
        "quantization_level": card.precision,
    }


def _listed(card: Card) -> dict[str, Any]:
    return {
        "name": card.tagged,
        "model": card.tagged,
        "modified_at": card.modified.isoformat(),
        "size": card.bytes,
        "digest": card.digest,
        "details": _details(card),
        "capabilities": _capabilities(card),
    }


def _running(card: Card) -> dict[str, Any]:
    never = datetime(9999, 12, 31, tzinfo=UTC).isoformat()  # models stay while the server does
    more = {"expires_at": never, "size_vram": 0, "context_length": card.context_length}
    return {**_listed(card), **more}


def _shown(card: Card) -> dict[str, Any]:
    template = "{{ .Prompt }}"
    if card.prompt_style is not None:
        around = format_prompt({"instruction": template, "input": ""}, card.prompt_style)
        template = f"{{{{ if .System }}}}{{{{ .System }}}}\n\n{{{{ end }}}}{around}"
    info = {
        "general.architecture": "gpt2",
        "general.parameter_count": card.parameters,
        "gpt2.context_length": card.context_length,
        "gpt2.embedding_length": card.config["n_embd"],
        "gpt2.block_count": card.config["n_layer"],
        "gpt2.attention.head_count": card.config["n_head"],
        "gpt2.vocab_size": card.config["vocab_size"],
    }
    return {
        "modelfile": f'# served by gptmill\nFROM {card.name}\nTEMPLATE """{template}"""\n',
        "parameters": f"num_ctx {card.context_length}",
        "template": template,
        "details": _details(card),
        "model_info": info,
        "capabilities": _capabilities(card),
        "modified_at": card.modified.isoformat(),
    }


def _capabilities(card: Card) -> list[str]:
    return ["classify"] if card.is_classifier else ["completion"]
