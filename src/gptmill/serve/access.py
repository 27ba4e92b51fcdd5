"""Who may ask: keys, the names that this server answers to, and the pages that may use it."""

import hmac
import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from gptmill.errors import UserError

KEY_VARIABLE = "GPTMILL_API_KEY"
SHORTEST_KEY = 16  # characters
# Names that no public server resolves, so that no other site's page comes under them.
LOCAL_NAMES = ("localhost", "*.localhost", "*.local", "*.internal")
# Pages that Ollama lets in: those of this machine, on any port, and of desktop applications.
LOCAL_ORIGINS = ("localhost", "*.localhost", "127.0.0.1", "::1", "0.0.0.0")
APPLICATIONS = ("app", "file", "tauri", "vscode-webview", "vscode-file")
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Access:
    """What a server lets in.

    Args:
        host: the address it listens on.
        keys: one of which every request but the page's and `/health` must bear; none asks for none.
        allowed_hosts: names that it answers to beside its own, `*.example.com` for all under one.
        allowed_origins: pages that may use it beside its own, as `https://example.com`, with `*`
            for any part.
        trusted_proxies: addresses whose `X-Forwarded-…` headers are believed.
    """

    host: str
    keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()

    def is_authorised(self, headers: Headers) -> bool:
        """Whether a request bears one of the keys; each comparison takes the same time."""
        if not self.keys:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        offered = given.strip().encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(offered, key.encode()) for key in self.keys]
        return scheme.lower() == "bearer" and any(matches)

    def answers_to(self, host: str) -> bool:
        """Whether a `Host` is one of ours. A page of another site can make a browser send requests
        to loopback, under a name of its own that resolves to it (DNS rebinding)."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
        except ValueError:
            return False
        own = (socket.gethostname().lower(), self.host.lower(), *LOCAL_NAMES)
        names = (*own, *(allowed.lower() for allowed in self.allowed_hosts))
        return _is_address(name) or any(fnmatchcase(name, pattern) for pattern in names)

    def lets_in(self, origin: str, host: str) -> bool:
        """Whether the page of an `Origin` may use the server that it calls `host`."""
        if any(fnmatchcase(origin.lower(), allowed.lower()) for allowed in self.allowed_origins):
            return True
        try:
            page = urlsplit(origin)
            same = (page.hostname, _port(origin)) == _name_and_port(f"{page.scheme}://{host}")
        except ValueError:
            return False
        if page.scheme in APPLICATIONS:
            return True
        name = (page.hostname or "").lower()
        local = any(fnmatchcase(name, pattern) for pattern in LOCAL_ORIGINS)
        return page.scheme in PORTS and bool(name) and (same or local)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _port(address: str) -> int | None:
    parts = urlsplit(address)
    return parts.port or PORTS.get(parts.scheme)


def _name_and_port(address: str) -> tuple[str | None, int | None]:
    return urlsplit(address).hostname, _port(address)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on an address or a name."""
    try:
        infos = socket.getaddrinfo(host, None, flags=socket.AI_PASSIVE)
        addresses = [str(address[0]).partition("%")[0] for *_, address in infos]
        return all(ipaddress.ip_address(address).is_loopback for address in addresses)
    except OSError:
        return False  # whoever listens there says what is wrong


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys of a file, one a line, or else of the environment variable `GPTMILL_API_KEY`.

    Raises:
        UserError: the file cannot be read or holds none, or a key is short or has odd characters.
    """
    where = str(path) if path else KEY_VARIABLE
    try:
        text = path.read_text(encoding="utf-8") if path else os.environ.get(KEY_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {path} cannot be read: {error}") from None
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if path and not keys:
        raise UserError(f"{path} holds no key: write one of at least {SHORTEST_KEY} characters")
    for key in keys:
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"{where}: a key must be at least {SHORTEST_KEY} printable ASCII characters "
                "without spaces; `openssl rand -hex 32` makes one"
            )
    return keys


def check_reach(access: Access) -> None:
    """Beyond this machine, nobody is served without a key.

    Raises:
        UserError: the address is not loopback, and there is no key.
    """
    if not access.keys and not is_loopback(access.host):
        raise UserError(
            f"--host {access.host} lets other machines in, and there is no API key: set "
            f"{KEY_VARIABLE} or name --api-key-file; `openssl rand -hex 32` makes a key"
        )


def check_patterns(names: Sequence[str], option: str, example: str, *, origin: bool) -> None:
    """Refuse patterns that could never match.

    Raises:
        UserError: a host with a scheme or path, or an origin without a scheme or with a path.
    """
    for name in names:
        _, scheme, rest = name.rpartition("://")
        if bool(scheme) != origin or not rest or "/" in rest:
            raise UserError(f"{option}: {name!r} should look like {example}")
