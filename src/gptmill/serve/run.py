"""Listening: one process, one event loop, and a line that says what is served where."""

import socket

import uvicorn

from gptmill.errors import UserError
from gptmill.serve.app import create_app
from gptmill.serve.service import Service

SHUTDOWN_SECONDS = 5  # that answers under way have, when the server is told to stop
BACKLOG = 2048


def run(service: Service, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        UserError: the address cannot be listened on.
    """
    listener = listen(host, port)
    address = f"http://{_bracketed(host)}:{listener.getsockname()[1]}"
    names = ", ".join(card.name for card in service.catalogue)
    print(f"{address} serves {names}: Ollama's /api, OpenAI's /v1, /classify, a page", flush=True)
    server(service, host).run(sockets=[listener])


def server(service: Service, host: str) -> uvicorn.Server:
    """A server that is not listening yet."""
    config = uvicorn.Config(
        create_app(service, host),
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
    )
    return uvicorn.Server(config)


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
