"""Ollama's protocol: `/api/chat`, `/api/generate`, and what its clients ask about models."""

from importlib.metadata import version as package_version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from gptmill.serve.answering import reply, streamed
from gptmill.serve.ollama_body import Asked, Chat, Generate, Named
from gptmill.serve.ollama_models import listed, running, shown
from gptmill.serve.ollama_wording import ChatWording, GenerateWording, OllamaWording, head
from gptmill.serve.service import Service

STREAMED = streamed(OllamaWording.media_type)


def routes(service: Service) -> APIRouter:
    """Ollama's paths over a service."""
    router = APIRouter()

    @router.post("/api/chat", responses=STREAMED)
    async def chat(body: Chat, http: Request) -> Response:
        return await _answer(service, body, http, ChatWording)

    @router.post("/api/generate", responses=STREAMED)
    async def generate(body: Generate, http: Request) -> Response:
        return await _answer(service, body, http, GenerateWording)

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


async def _answer(
    service: Service, body: Asked, http: Request, wording: type[OllamaWording]
) -> Response:
    body.refuse_unsupported()
    if not body.is_empty:
        return await reply(service, body, http, wording)
    reason = "unload" if body.keep_alive == 0 else "load"
    if reason == "unload":
        service.keep(service.card(body.model), 0)
    else:
        async with service.using(body.model, service.deadline(), body.keep_alive):
            pass
    about = {"done": True, "done_reason": reason}
    return JSONResponse({**head(body.model), **wording.text(""), **about})
