"""Listening: one process, one event loop, and a line that says what is served where."""

import asyncio
import math
import socket
from typing import cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptmill.errors import UserError
from gptmill.serve.access import Access, check_reach
from gptmill.serve.app import create_app
from gptmill.serve.service import Service

HEADER_SECONDS = 15.0  # that a request's head may take to arrive
KEEP_ALIVE_SECONDS = 60  # of an idle connection; a short time makes clients meet its very end
LAST_WORDS = 2.0  # seconds for the errors of answers that were ended
BACKLOG = 2048


def run(service: Service, access: Access, port: int) -> None:
    """Serve until interrupted.

    Raises:
        UserError: the address cannot be listened on, or others reach it and there is no key.
    """
    check_reach(access)
    listener = listen(access.host, port)
    address = f"http://{_bracketed(access.host)}:{listener.getsockname()[1]}"
    names = ", ".join(card.name for card in service.catalogue)
    print(f"{address} serves {names}: Ollama's /api, OpenAI's /v1, /classify, a page", flush=True)
    server(service, access).run(sockets=[listener])


def server(service: Service, access: Access) -> "Server":
    """A server that is not listening yet."""
    config = uvicorn.Config(
        create_app(service, access),
        http=Protocol,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_config=None,
        access_log=False,  # the guard writes that line, with the request's id
        timeout_graceful_shutdown=math.ceil(service.limits.drain + LAST_WORDS),
        server_header=False,
        proxy_headers=False,  # the guard believes those proxies that it was told of
    )
    return Server(config, service)


class Server(uvicorn.Server):
    """Told to stop, it refuses what waits (503), lets running answers end within the service's
    limit, and then ends them with an error of their protocol."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.drain()
        ending = asyncio.ensure_future(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_answers(self) -> None:
        await asyncio.sleep(self._service.limits.drain)
        await asyncio.to_thread(self._service.close)


class Protocol(H11Protocol):
    """HTTP/1.1 by uvicorn, which closes connections whose next request's head never ends."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, before the server starts, so that its port is known.

    Raises:
        UserError: the name is unknown or the port taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
