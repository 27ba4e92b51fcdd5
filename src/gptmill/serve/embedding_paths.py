"""Texts as vectors: `/v1/embeddings` as OpenAI has it, `/api/embed` and the older `/api/embeddings`
as Ollama has them."""

import base64
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BeforeValidator, Field

from gptmill.serve.body import Body, ModelName
from gptmill.serve.language_model import LanguageModel
from gptmill.serve.ollama_body import Duration, Options
from gptmill.serve.ollama_wording import nanoseconds
from gptmill.serve.refusal import Refused
from gptmill.serve.service import Service

MAX_INPUTS = 2048  # OpenAI's


def _in_list(value: Any) -> Any:
    """One text, or the ids of one, as a list of one."""
    one = isinstance(value, str) or (
        isinstance(value, list) and value and isinstance(value[0], int)
    )
    return [value] if one else value


Inputs = Annotated[
    list[str | list[int]],
    Field(max_length=MAX_INPUTS),
    BeforeValidator(_in_list, json_schema_input_type=str | list[int] | list[str | list[int]]),
]


class Embeddings(Body):
    """`/v1/embeddings`."""

    without_effect = frozenset({"user"})

    model: ModelName
    input: Annotated[Inputs, Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class Embed(Body):
    """`/api/embed`, of `input`, and `/api/embeddings`, of `prompt`."""

    model: ModelName
    input: Inputs = []
    prompt: str = ""
    truncate: bool = True
    dimensions: int | None = None
    options: Options = Options()
    keep_alive: Duration | None = None


def routes(service: Service) -> APIRouter:
    """The paths over a service."""
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(body: Embeddings) -> dict[str, Any]:
        vectors, tokens = await _vectors(service, body, body.input, truncate=False)
        encode: Callable[[np.ndarray], str | list[float]]
        encode = _base64 if body.encoding_format == "base64" else _numbers
        data = [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": body.model, "usage": usage}

    @router.post("/api/embed")
    async def embed(body: Embed) -> dict[str, Any]:
        started = time.monotonic()
        vectors, tokens = await _vectors(service, body, body.input, truncate=body.truncate)
        return {
            "model": body.model,
            "embeddings": vectors.tolist(),
            "total_duration": nanoseconds(time.monotonic() - started),
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }

    @router.post("/api/embeddings")
    async def older(body: Embed) -> dict[str, Any]:
        inputs = [body.prompt] if body.prompt else []
        vectors, _ = await _vectors(service, body, inputs, truncate=body.truncate)
        return {"embedding": vectors[0].tolist() if len(vectors) else []}

    return router


def _numbers(vector: np.ndarray) -> list[float]:
    return vector.tolist()


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def _vectors(
    service: Service, body: Embeddings | Embed, inputs: list, *, truncate: bool
) -> tuple[np.ndarray, int]:
    """Vectors [inputs, C] float32, and how many tokens they were made of."""
    deadline, keep_alive = service.deadline(), getattr(body, "keep_alive", None)
    async with service.using(body.model, deadline, keep_alive) as model:
        if body.dimensions not in (None, model.width):
            raise Refused(400, f"dimensions must be {model.width}, which this model has")
        ids = await service.work(deadline, _ids, inputs, model, truncate)
        return await service.embed(model, ids, deadline), sum(map(len, ids))


def _ids(inputs: list, model: LanguageModel, truncate: bool) -> list[list[int]]:
    return [_one(text, at, model, truncate) for at, text in enumerate(inputs)]


def _one(text: str | list[int], at: int, model: LanguageModel, truncate: bool) -> list[int]:
    ids = model.tokenizer.encode(text) if isinstance(text, str) else text
    if not ids:
        raise Refused(400, f"input {at} is empty", None, "input")
    if any(not 0 <= id < model.tokenizer.vocabulary_size for id in ids):
        raise Refused(400, "input has token ids that this model has not", None, "input")
    context = model.context_length
    if len(ids) > context and not truncate:
        raise Refused(
            400,
            f"This model's maximum context length is {context} tokens; input {at} has {len(ids)}.",
            "context_length_exceeded",
            "input",
        )
    return ids[:context]
