"""OpenAI's protocol: `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/models`."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gptmill.serve.answering import reply, streamed
from gptmill.serve.catalogue import Card
from gptmill.serve.openai_body import Chat, Completion
from gptmill.serve.openai_wording import ChatWording, CompletionWording, OpenAIWording
from gptmill.serve.responses_body import Responses
from gptmill.serve.responses_wording import ResponseWording
from gptmill.serve.service import Service

STREAMED = streamed(OpenAIWording.media_type)


def routes(service: Service) -> APIRouter:
    """OpenAI's paths over a service."""
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions", responses=STREAMED)
    async def chat(body: Chat, http: Request) -> Response:
        return await reply(service, body, http, ChatWording)

    @router.post("/completions", responses=STREAMED)
    async def complete(body: Completion, http: Request) -> Response:
        return await reply(service, body, http, CompletionWording)

    @router.post("/responses", responses=STREAMED)
    async def respond(body: Responses, http: Request) -> Response:
        return await reply(service, body, http, ResponseWording)

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
