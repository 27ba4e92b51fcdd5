"""What both protocols need of HTTP: answers that end when their client leaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from gptmill.serve.service import Answer, Refused

CLIENT_LEFT = 499  # nginx's status for it; nobody reads it but the metrics

Result = TypeVar("Result")


class Stream(StreamingResponse):
    """An answer sent as it comes, and cancelled however its sending ends."""

    def __init__(self, content: AsyncIterator[bytes], answer: Answer, media_type: str) -> None:
        # Proxies that buffer would hold back what is meant to come at once.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type=media_type, headers=headers)
        self._answer = answer

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


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
