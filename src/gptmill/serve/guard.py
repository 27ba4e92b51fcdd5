"""What stands before the server: who may ask, and the counting of it."""

import ipaddress
import socket
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptmill.serve.metrics import Metrics

PROTECTION = {
    # The page loads nothing from elsewhere, and no other page frames it.
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
REFUSED_STATUS = 500  # of a request that broke before it had a status


class Guard:
    """ASGI middleware: hosts, origins, sizes of bodies, and metrics.

    A page on another site can make a browser send requests to loopback, under a name of its own
    that resolves to it (DNS rebinding). It cannot forge `Host` and `Origin`: the host must be an
    address, this machine's name, or the one served on, and an origin must be the host itself.

    Args:
        host: what the server listens on.
        max_body: bytes of a body.
    """

    def __init__(self, app: ASGIApp, *, host: str, max_body: int, metrics: Metrics) -> None:
        self._app, self._max_body, self._metrics = app, max_body, metrics
        self._names = {"localhost", socket.gethostname().lower(), host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.monotonic(), REFUSED_STATUS

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(PROTECTION)
            await send(message)

        try:
            await self._answer(scope, receive, noted_send)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.request(path, status, time.monotonic() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope))
        if refusal:
            status, message = refusal
            body = error_body(scope["path"], status, message)
            return await JSONResponse(body, status)(scope, receive, send)
        # Every body is JSON here; `curl -d` calls it a form.
        MutableHeaders(scope=scope)["content-type"] = "application/json"
        await self._app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, until a body grows beyond the limit."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body:
                raise HTTPException(413, self._too_large())
            return message

        return limited

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body} bytes"

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 403, f"this server does not answer as '{host}'"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, f"pages of {origin} may not use this server"
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body:
            return 413, self._too_large()
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self._names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def error_body(path: str, status: int, message: str, code: str | None = None) -> dict:
    """An error as the protocol of the path words it."""
    if not path.startswith("/v1/"):
        return {"error": message}
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
