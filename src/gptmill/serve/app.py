"""The server put together: both protocols, the classifier, health, metrics and the page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from gptmill.errors import UserError
from gptmill.serve import ollama, openai
from gptmill.serve.guard import Guard, error_body
from gptmill.serve.service import RETRY_SECONDS, Refused, Service, refusal

PAGE = Path(__file__).parent / "page"
MAX_BODY = 2**20  # bytes: many times what any context of GPT-2's holds


class Classify(BaseModel):
    """`/classify`: one `text`, or `texts`."""

    model: str | None = None
    text: str | None = None
    texts: list[str] | None = None


def create_app(service: Service, host: str) -> FastAPI:
    """The ASGI application; `host` is what it will listen on."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="gptmill", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, host=host, max_body=MAX_BODY, metrics=service.metrics)
    _add_errors(app)
    app.include_router(ollama.routes(service))
    app.include_router(openai.routes(service))
    _add_own_routes(app, service)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _add_own_routes(app: FastAPI, service: Service) -> None:
    @app.post("/classify")
    async def classify(body: Classify) -> dict[str, Any]:
        if (body.text is None) == (body.texts is None):
            raise Refused(400, "give either text or texts")
        texts = body.texts if body.text is None else [body.text]
        answers = [
            {"label": result.label, "probabilities": result.probabilities}
            for result in await service.classify(body.model, texts)
        ]
        return {"results": answers} if body.text is None else answers[0]

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "models": [card.name for card in service.catalogue]}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    """Every failure as JSON of the path's protocol; a defect of ours as 500, after its traceback
    went to the log."""

    def answer(http: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_SECONDS)} if error.status == 503 else {}
        body = error_body(http.url.path, error.status, error.message, error.code)
        return JSONResponse(body, error.status, headers)

    @app.exception_handler(Refused)
    async def refused(http: Request, error: Refused) -> JSONResponse:
        return answer(http, error)

    @app.exception_handler(UserError)
    async def user_error(http: Request, error: UserError) -> JSONResponse:
        return answer(http, refusal(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> JSONResponse:
        return answer(http, Refused(400, _first_fault(error)))

    @app.exception_handler(HTTPException)
    async def http_error(http: Request, error: HTTPException) -> JSONResponse:
        return answer(http, Refused(error.status_code, f"{http.url.path}: {error.detail}"))

    @app.exception_handler(Exception)
    async def defect(http: Request, error: Exception) -> JSONResponse:
        return answer(http, refusal(error))


def _first_fault(error: RequestValidationError) -> str:
    """One line about what is wrong with a body, and where."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"][1:])
    if fault["type"] == "json_invalid":
        return f"the body is no JSON: {fault['ctx']['error']} at byte {where}"
    return f"{where}: {fault['msg']}" if where else fault["msg"]
