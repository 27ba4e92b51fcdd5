"""What stands before the server: who may ask, how long they may take, and the counting of it."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptmill.serve.access import Access
from gptmill.serve.logs import access_log, id_of, request_id
from gptmill.serve.metrics import Metrics
from gptmill.serve.refusal import Refused, error_body
from gptmill.serve.tracing import Tracing

PROTECTION = {
    # The page loads nothing from elsewhere, and no other page frames it.
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
PREFLIGHT = {
    "access-control-allow-methods": "GET, HEAD, POST",
    "access-control-max-age": "600",
    "access-control-expose-headers": "X-Request-Id",
}
REFUSED_STATUS = 500  # of a request that broke before it had a status
BODY_SECONDS = 30.0  # that a body may take to arrive
SEND_SECONDS = 30.0  # that a client may leave a full buffer unread
CLIENT_LEFT = 499  # nginx's status for it; nobody reads it but the metrics


class Guard:
    """ASGI middleware: hosts, origins, keys, sizes and times of bodies, and metrics.

    Args:
        max_body: bytes of a body.
        open_paths: what is shown without a key.
        tracing: makes spans of requests, or None.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        max_body: int,
        metrics: Metrics,
        open_paths: Sequence[str],
        tracing: Tracing | None = None,
    ) -> None:
        self._app, self._max_body, self._metrics = app, max_body, metrics
        self._access, self._open = access, frozenset(open_paths)
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        request_id.set(id_of(headers.get("x-request-id")))
        tracing = self._tracing
        with tracing.request(scope["method"], scope["path"], headers) if tracing else nullcontext():
            await self._counted(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, sender = time.monotonic(), _Sender(send)
        self._believe_proxy(scope)
        try:
            await self._answer(scope, receive, sender)
        except (ClientDisconnect, OSError):
            if not sender.slow:
                raise
        finally:
            status = CLIENT_LEFT if sender.slow else sender.status
            self._count(scope, status, time.monotonic() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        """Metrics, the log's line and the span's end of one request."""
        route, method = getattr(scope.get("route"), "path", "other"), scope["method"]
        self._metrics.request(route, status, seconds)
        client = scope["client"][0] if scope["client"] else ""
        fields = {
            "method": method, "path": scope["path"], "status": status,
            "seconds": round(seconds, 6), "client": client,
        }  # fmt: skip
        access_log.info(
            "%s %s %d in %.3f s", method, scope["path"], status, seconds, extra={"fields": fields}
        )
        if self._tracing:
            self._tracing.answered(method, route, status, request_id.get())

    def _believe_proxy(self, scope: Scope) -> None:
        """Take the client, the host and the scheme from a trusted proxy's headers."""
        trusted = self._access.trusted_proxies
        if not scope["client"] or scope["client"][0] not in trusted:
            return
        headers = MutableHeaders(scope=scope)
        hops = [hop.strip() for hop in headers.get("x-forwarded-for", "").split(",") if hop.strip()]
        clients = [hop for hop in hops if hop not in trusted]
        if clients:
            scope["client"] = (clients[-1], 0)
        if host := headers.get("x-forwarded-host"):
            headers["host"] = host
        if (scheme := headers.get("x-forwarded-proto")) in ("http", "https"):
            scope["scheme"] = scheme

    async def _answer(self, scope: Scope, receive: Receive, sender: "_Sender") -> None:
        headers = Headers(scope=scope)
        refused = self._refusal(scope, headers)
        if refused:
            body = error_body(scope["path"], refused)
            more = {"www-authenticate": "Bearer"} if refused.status == 401 else {}
            return await JSONResponse(body, refused.status, more)(scope, receive, sender)
        sender.origin = headers.get("origin")
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            wanted = headers.get("access-control-request-headers", "")
            more = {**PREFLIGHT, "access-control-allow-headers": wanted}
            return await Response(status_code=204, headers=more)(scope, receive, sender)
        # Every body is JSON here; `curl -d` calls it a form.
        MutableHeaders(scope=scope)["content-type"] = "application/json"
        await self._app(scope, self._limited(receive), sender)

    def _refusal(self, scope: Scope, headers: Headers) -> Refused | None:
        host, origin = headers.get("host"), headers.get("origin")
        # HTTP/1.0 has no Host; every browser has sent one for decades, which is whom this is about.
        if host is None:
            old = scope["http_version"] == "1.0" and origin is None
            host = self._access.host if old else ""
        if not self._access.answers_to(host):
            return Refused(
                403,
                f"this server does not answer as '{host}'; --allowed-hosts lets names in",
            )
        if origin is not None and not self._access.lets_in(origin, host):
            return Refused(
                403, f"pages of {origin} may not use this server; --allowed-origins lets them"
            )
        if not self._is_open(scope, headers) and not self._access.is_authorised(headers):
            return Refused(
                401, "this server asks for an API key: 'Authorization: Bearer …'", "invalid_api_key"
            )
        return self._refused_body(headers)

    def _is_open(self, scope: Scope, headers: Headers) -> bool:
        """What a browser asks before it knows the key: the page, and leave to ask."""
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        return preflight or scope["path"] in self._open

    def _refused_body(self, headers: Headers) -> Refused | None:
        coding = headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            return Refused(415, f"a body in {coding} is not read here: send it as it is")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body:
            return Refused(413, self._too_large())
        return None

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, until a body grows beyond the limit, or takes too long."""
        read, more, until = 0, True, time.monotonic() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal read, more
            try:
                async with asyncio.timeout(until - time.monotonic() if more else None):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body took over {BODY_SECONDS:g} s") from None
            more = more and message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._max_body:
                raise HTTPException(413, self._too_large())
            return message

        return limited

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body} bytes"


class _Sender:
    """`send` with our headers, which notes the status and gives up on who does not read."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status, self.slow = REFUSED_STATUS, False
        self.origin: str | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.update(PROTECTION)
            headers["x-request-id"] = request_id.get()
            if self.origin is not None:
                headers["access-control-allow-origin"] = self.origin
                headers.add_vary_header("Origin")
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send(message)
        except TimeoutError:
            self.slow = True
            raise
