"""What both protocols need: answers that end when their client leaves, and requests that mean what
they say."""

import asyncio
import difflib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

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


async def respond(
    http: Request,
    answer: Answer,
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


def check_extra(
    extra: Mapping[str, Any],
    known: Collection[str],
    without_effect: Collection[str],
    unsupported: Mapping[str, tuple | None],
) -> None:
    """Refuse fields that would silently do nothing.

    Args:
        extra: fields that the request's type does not have.
        known: those it has, to find what a misspelt one meant.
        without_effect: fields of the protocol that change no text.
        unsupported: fields that would change the text, with the values that do not; None for
            those that another field switches on.
    """
    for name, value in extra.items():
        if value is None or name in without_effect:
            continue
        if name not in unsupported:
            near = "".join(
                f": did you mean {n}?" for n in difflib.get_close_matches(name, known, 1)
            )
            raise Refused(400, f"unknown option {name}{near}")
        neutral = unsupported[name]
        if neutral is not None and value not in neutral:
            raise Refused(400, f"{name} is not supported here, except as {neutral[0]!r}")


def seed_or_random(seed: int | None) -> int:
    """Any integer as a seed; a random one for none."""
    return secrets.randbits(64) if seed is None else seed % 2**64
