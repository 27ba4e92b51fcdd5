"""`/tokenize` and `/detokenize`, as llama.cpp's server and vLLM have them."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from gptmill.serve.body import Body, ModelName
from gptmill.serve.catalogue import Card
from gptmill.serve.language_model import LanguageModel
from gptmill.serve.refusal import Refused
from gptmill.serve.service import Service

MAX_TOKENS = 2**18  # of a text to be written out; more do not fit a body anyway


class Tokenize(Body):
    """A text, under one of two names; `model` where there are several."""

    # Neither changes a token here: no text begins with a token of its own.
    without_effect = frozenset({"add_special_tokens", "parse_special"})

    model: ModelName = ""
    prompt: str | None = None
    content: str | None = None


class Detokenize(Body):
    """Token ids; `model` where there are several."""

    model: ModelName = ""
    tokens: list[int] = Field(max_length=MAX_TOKENS)


def routes(service: Service) -> APIRouter:
    """Both paths over a service."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(body: Tokenize) -> dict[str, Any]:
        if (body.prompt is None) == (body.content is None):
            raise Refused(400, "give either prompt or content")
        text, deadline = body.content if body.prompt is None else body.prompt, service.deadline()
        async with service.using(_name(service, body.model), deadline) as model:
            ids = await service.work(deadline, model.tokenizer.encode, text)
        return {"tokens": ids, "count": len(ids), "max_model_len": model.context_length}

    @router.post("/detokenize")
    async def detokenize(body: Detokenize) -> dict[str, Any]:
        deadline = service.deadline()
        async with service.using(_name(service, body.model), deadline) as model:
            text = await service.work(deadline, _decoded, model, body.tokens)
        return {"content": text, "prompt": text}

    return router


def _decoded(model: LanguageModel, ids: list[int]) -> str:
    if any(not 0 <= id < model.tokenizer.vocabulary_size for id in ids):
        raise Refused(400, "tokens has ids that this model has not")
    return model.tokenizer.decode(ids)


def _name(service: Service, name: str) -> str:
    """The named model, or the only one that has texts."""
    cards: list[Card] = [card for card in service.catalogue if not card.is_classifier]
    if name or len(cards) == 1:
        return name or cards[0].name
    raise Refused(400, "model is missing, and there are several", None, "model")
