"""OpenAI's protocol: `/v1/chat/completions`, `/v1/completions`, `/v1/models`.

`top_k`, `min_p` and `repetition_penalty` are taken too, under the names that other local servers
give them. What cannot be honoured is refused by name.
"""

import asyncio
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from gptmill.generate.sampling import SamplingOptions
from gptmill.serve.answering import check_extra, respond, seed_or_random
from gptmill.serve.catalogue import Card
from gptmill.serve.constraint import ANY_OBJECT
from gptmill.serve.engine import Candidate, Piece, Scored
from gptmill.serve.guard import error_body
from gptmill.serve.prompts import Message, conversation_ids
from gptmill.serve.service import Answer, Ask, LanguageModel, Refused, Service
from gptmill.tokenizer import Tokenizer

WITHOUT_EFFECT = {
    "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls", "tool_choice", "prediction", "verbosity",
}  # fmt: skip
UNSUPPORTED = {
    "n": (1,), "best_of": (1,), "presence_penalty": (0,), "frequency_penalty": (0,),
    "logit_bias": ({},), "tools": ([],), "functions": ([],), "modalities": (["text"],),
    "echo": (False,), "suffix": ("",), "audio": None, "reasoning_effort": ("none",),
}  # fmt: skip


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: bool = False


class Asked(BaseModel):
    """What both paths have in common."""

    model_config = ConfigDict(extra="allow")

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = 0
    min_p: float | None = 0.0
    repetition_penalty: float | None = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None


class Part(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message; `developer` is the newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    def message(self) -> Message:
        content = self.content or ""
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        return Message("system" if self.role == "developer" else self.role, content)


class JsonSchema(BaseModel):
    """A schema by name."""

    name: str = ""
    schema_: dict[str, Any] = Field(ANY_OBJECT, alias="schema")


class ResponseFormat(BaseModel):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_wanted(self) -> dict[str, Any] | None:
        if self.type == "text":
            return None
        return self.json_schema.schema_ if self.json_schema else ANY_OBJECT


class Chat(Asked):
    """`/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None


class Completion(Asked):
    """`/v1/completions`, of one prompt: a text, or token ids."""

    prompt: str | list[str] | list[int]
    logprobs: int | None = Field(None, ge=0, le=20)


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
    check_extra(body.model_extra, list(type(body).model_fields), WITHOUT_EFFECT, UNSUPPORTED)
    model = await service.language_model(body.model)
    make = _chat_ask if isinstance(body, Chat) else _completion_ask
    ask = await asyncio.to_thread(make, body, model, service.limits.max_tokens)
    answer = await service.ask(model, ask)
    wording = (_ChatWording if isinstance(body, Chat) else _CompletionWording)(body, model)
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return await respond(
        http,
        answer,
        stream=bool(body.stream),
        media_type="text/event-stream",
        chunks=lambda: _events(answer, wording, usage),
        whole=lambda: _whole(answer, wording),
    )


def _chat_ask(body: Chat, model: LanguageModel, limit: int) -> Ask:
    if model.prompt_style is None:
        raise Refused(400, f"{body.model} was not trained to chat: ask /v1/completions")
    context = model.context_length
    wanted = body.max_completion_tokens or body.max_tokens or limit
    ids = conversation_ids(
        [message.message() for message in body.messages],
        model.prompt_style,
        model.tokenizer,
        context - min(wanted, context // 4),
    )
    schema = body.response_format.schema_wanted() if body.response_format else None
    top = (body.top_logprobs or 0) if body.logprobs else None
    return Ask(ids, _sampling(body, model, min(wanted, limit)), context, top, schema)


def _completion_ask(body: Completion, model: LanguageModel, limit: int) -> Ask:
    prompt = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list) and any(isinstance(part, str) for part in prompt):
        raise Refused(400, "prompt: one a request; many requests at once share their steps here")
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if any(not 0 <= id < model.tokenizer.vocabulary_size for id in ids):
        raise Refused(400, "prompt has token ids that this model has not")
    most = min(body.max_tokens or limit, limit)
    ids = ids or [model.tokenizer.end_of_text]
    return Ask(ids, _sampling(body, model, most), model.context_length, body.logprobs)


def _sampling(body: Asked, model: LanguageModel, most: int) -> SamplingOptions:
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return SamplingOptions(
        max_new_tokens=most,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        stop_tokens=model.stop_tokens,
        stop_strings=tuple(stop for stop in stops if stop),
        seed=seed_or_random(body.seed),
    )


class _Wording(ABC):
    """How a path wraps text; one object per answer."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, body: Asked, model: LanguageModel) -> None:
        self._model = body.model
        self._tokenizer = model.tokenizer
        self._id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def chunk(self, piece: Piece | None, reason: str | None) -> dict[str, Any]:
        """A piece of a stream, or its end."""
        choice = {"index": 0, **self.part(piece), "finish_reason": reason}
        return self.envelope(self.chunk_object, [choice])

    def whole(self, piece: Piece, reason: str, usage: dict[str, int]) -> dict[str, Any]:
        """An answer in one."""
        choice = {"index": 0, **self.all(piece), "finish_reason": reason}
        return {**self.envelope(self.whole_object, [choice]), "usage": usage}

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """What stands around choices."""
        about = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return {**about, "choices": choices}

    @abstractmethod
    def part(self, piece: Piece | None) -> dict[str, Any]:
        """The text of a chunk."""

    @abstractmethod
    def all(self, piece: Piece) -> dict[str, Any]:
        """The text of a whole answer."""


class _ChatWording(_Wording):
    prefix = "chatcmpl"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"
    _begun = False

    def part(self, piece: Piece | None) -> dict[str, Any]:
        delta = {} if self._begun else {"role": "assistant"}
        self._begun = True
        if piece is not None:
            delta["content"] = piece.text
        return {"delta": delta, "logprobs": self._logprobs(piece)}

    def all(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(piece)}

    def _logprobs(self, piece: Piece | None) -> dict[str, Any] | None:
        if piece is None or not piece.scored:
            return None
        return {"content": [self._scored(scored) for scored in piece.scored], "refusal": None}

    def _scored(self, scored: Scored) -> dict[str, Any]:
        top = [_candidate(self._tokenizer, candidate) for candidate in scored.top]
        return {**_candidate(self._tokenizer, scored.chosen), "top_logprobs": top}


class _CompletionWording(_Wording):
    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"
    _offset = 0

    def part(self, piece: Piece | None) -> dict[str, Any]:
        return self.all(piece or Piece("", []))

    def all(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text, "logprobs": self._logprobs(piece.scored)}

    def _logprobs(self, scored: list[Scored]) -> dict[str, Any] | None:
        if not scored:
            return None
        tokens = [self._text(one.chosen) for one in scored]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [one.chosen.logprob for one in scored],
            "top_logprobs": [{self._text(c): c.logprob for c in one.top} for one in scored],
            "text_offset": offsets,
        }

    def _text(self, candidate: Candidate) -> str:
        """The token's text, or its bytes as OpenAI writes them: two tokens never look the same."""
        raw = self._tokenizer.decode_bytes([candidate.id])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _candidate(tokenizer: Tokenizer, candidate: Candidate) -> dict[str, Any]:
    raw = tokenizer.decode_bytes([candidate.id])
    text = raw.decode("utf-8", errors="replace")
    return {"token": text, "logprob": candidate.logprob, "bytes": list(raw)}


async def _events(answer: Answer, wording: _Wording, usage: bool) -> AsyncIterator[bytes]:
    nothing = {"usage": None} if usage else {}
    try:
        async for piece in answer.pieces():
            yield _event({**wording.chunk(piece, None), **nothing})
        yield _event({**wording.chunk(None, _reason(answer)), **nothing})
        if usage:
            yield _event({**wording.envelope(wording.chunk_object, []), "usage": _usage(answer)})
        yield b"data: [DONE]\n\n"
    except Refused as error:
        yield _event(error_body("/v1/", error.status, error.message, error.code))


async def _whole(answer: Answer, wording: _Wording) -> dict[str, Any]:
    piece = await answer.whole()
    return wording.whole(piece, _reason(answer), _usage(answer))


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _reason(answer: Answer) -> str:
    return "length" if answer.finished.reason == "length" else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    read, written = answer.finished.prompt_tokens, len(answer.finished.ids)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
