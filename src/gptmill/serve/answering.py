"""What both protocols need: answers that end when their client leaves."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from gptmill.serve.guard import CLIENT_LEFT
from gptmill.serve.refusal import Refused

Result = TypeVar("Result")


class Answering(Protocol):
    """An `Answer`, or several."""

    async def ready(self) -> None:
        """Wait until it begins, so that what fails at once has a status of its own."""

    def cancel(self) -> None:
        """Free what it holds."""


class Stream(StreamingResponse):
    """An answer sent as it comes, and cancelled however its sending ends."""

    def __init__(self, content: AsyncIterator[bytes], answer: "Answering", media_type: str) -> None:
        # Proxies that buffer would hold back what is meant to come at once.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type=media_type, headers=headers)
        self._answer = answer

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def respond(
    http: Request,
    answer: "Answering",
    *,
    stream: bool,
    media_type: str,
    chunks: Callable[[], AsyncIterator[bytes]],
    whole: Callable[[], Awaitable[dict[str, Any]]],
) -> Response:
    """An answer as it comes, or in one. What fails before its first token has a status."""
    try:
        await until_gone(http, answer.ready())
        if stream:
            return Stream(chunks(), answer, media_type)
        return JSONResponse(await until_gone(http, whole()))
    except BaseException:
        answer.cancel()
        raise


async def until_gone(http: Request, work: Awaitable[Result]) -> Result:
    """The result of some work, given up when the client leaves."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(CLIENT_LEFT, "the client left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def client_of(http: Request) -> str:
    """Who asks, as far as places are shared: the address."""
    return http.client.host if http.client else ""


def seed_or_random(seed: int | None) -> int:
    """Any integer as a seed; a random one for none."""
    return secrets.randbits(64) if seed is None else seed % 2**64
