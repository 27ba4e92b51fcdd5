"""The server put together: both protocols, the classifier, health, metrics and the page."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from gptmill.errors import UserError
from gptmill.serve import embedding_paths, ollama, openai, token_paths
from gptmill.serve.access import Access
from gptmill.serve.body import MAX_TEXTS, Body, ModelName
from gptmill.serve.engine import SHUTTING_DOWN
from gptmill.serve.guard import Guard
from gptmill.serve.refusal import RETRY_SECONDS, Refused, error_body, refusal
from gptmill.serve.request import Busy
from gptmill.serve.service import Service
from gptmill.serve.tracing import open_tracing

PAGE = Path(__file__).parent / "page"
MAX_BODY = 2**20  # bytes: many times what any context of GPT-2's holds
STATUSES = {
    400: "what is wrong with the request, by the field's name",
    401: "the API key is missing or wrong",
    403: "the host or the page's origin is not allowed",
    404: "there is no such model or path",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "the body is compressed",
    500: "the model cannot be loaded, or a defect",
    503: "too many requests wait, or the server shuts down; Retry-After says when to come again",
    504: "the request took longer than this server allows",
}


class Classify(Body):
    """`/classify`: one `text`, or `texts`."""

    model: ModelName | None = None
    text: str | None = None
    texts: Annotated[list[str], Field(max_length=MAX_TEXTS)] | None = None


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document without 422, which FastAPI adds and this server never sends."""
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return document


def create_app(service: Service, access: Access) -> FastAPI:
    """The ASGI application."""
    tracing = open_tracing()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)
        if tracing:
            await asyncio.to_thread(tracing.close)

    app = _Application(
        title="gptmill",
        version=package_version("gptmill"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={status: {"description": text} for status, text in STATUSES.items()},
    )
    page = {f"/{path.name}": path for path in PAGE.iterdir()} | {"/": PAGE / "index.html"}
    app.add_middleware(
        Guard,
        access=access,
        max_body=MAX_BODY,
        metrics=service.metrics,
        open_paths=[*page, "/health", "/ready"],
        tracing=tracing,
    )
    _add_errors(app)
    app.include_router(ollama.routes(service))
    app.include_router(openai.routes(service))
    app.include_router(embedding_paths.routes(service))
    app.include_router(token_paths.routes(service))
    _add_own_routes(app, service, access)
    for path, file in page.items():
        _add_file(app, path, file)
    return app


def _add_file(app: FastAPI, path: str, file: Path) -> None:
    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    def show() -> FileResponse:
        return FileResponse(file)


def _add_own_routes(app: FastAPI, service: Service, access: Access) -> None:
    @app.post("/classify")
    async def classify(body: Classify) -> dict[str, Any]:
        if (body.text is None) == (body.texts is None):
            raise Refused(400, "give either text or texts")
        texts = [body.text] if body.text is not None else body.texts or []
        answers = [
            {"label": result.label, "probabilities": result.probabilities}
            for result in await service.classify(body.model, texts)
        ]
        return {"results": answers} if body.text is None else answers[0]

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    def health(http: Request) -> dict[str, Any]:
        """It lives; the models are named to those who may use them."""
        if not access.is_authorised(http.headers):
            return {"status": "ok"}
        return {"status": "ok", "models": [card.name for card in service.catalogue]}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    def ready() -> dict[str, Any]:
        """It takes requests: 503 once it was told to stop."""
        if service.draining:
            raise refusal(Busy(SHUTTING_DOWN))
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    """Every failure as JSON of the path's protocol; a defect of ours as 500, after its traceback
    went to the log."""

    def answer(http: Request, error: Refused, more: Mapping[str, str] = {}) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_SECONDS)} if error.status == 503 else dict(more)
        body = error_body(http.url.path, error)
        return JSONResponse(body, error.status, headers)

    @app.exception_handler(Refused)
    async def refused(http: Request, error: Refused) -> JSONResponse:
        return answer(http, error)

    @app.exception_handler(UserError)
    async def user_error(http: Request, error: UserError) -> JSONResponse:
        return answer(http, refusal(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> JSONResponse:
        where, message = _first_fault(error)
        return answer(http, Refused(400, message, None, where or None))

    @app.exception_handler(HTTPException)
    async def http_error(http: Request, error: HTTPException) -> JSONResponse:
        refused = Refused(error.status_code, f"{http.url.path}: {error.detail}")
        return answer(http, refused, error.headers or {})

    @app.exception_handler(Exception)
    async def defect(http: Request, error: Exception) -> JSONResponse:
        return answer(http, refusal(error))


def _first_fault(error: RequestValidationError) -> tuple[str, str]:
    """Where a body is wrong, and one line about it."""
    fault = error.errors()[0]
    if fault["type"] == "json_invalid":
        return "", f"the body is no JSON: {fault['ctx']['error']} at byte {fault['loc'][1]}"
    where = ".".join(_client_path(fault["loc"][1:], error.body, fault["type"] == "missing"))
    message = fault["msg"].removeprefix("Value error, ")
    return where, f"{where}: {message}" if where else message


def _client_path(path: Sequence[str | int], body: Any, missing: bool) -> Iterator[str]:
    """The steps of a path that the client sent: pydantic names its own types among them."""
    for at, step in enumerate(path):
        if isinstance(body, list) and isinstance(step, int):
            body = body[step] if step < len(body) else None
            yield str(step)
        elif isinstance(body, dict) and step in body:
            body = body[step]
            yield str(step)
        elif missing and at == len(path) - 1:
            yield str(step)
