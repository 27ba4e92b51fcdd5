"""Where runs go, and whether anybody answers there."""

import os
import socket
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from gptmill.errors import UserError, without_credentials

PROBE_SECONDS = 1.0
LOCK_SECONDS = 2.0  # others write for moments; who holds a database for longer holds it for good
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def project_root() -> Path:
    """The repository that was asked to run, also when DVC runs in a temporary copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def tracking_address() -> str:
    """`MLFLOW_TRACKING_URI`, else the database `mlflow.db` in the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_database()


def own_database() -> str:
    """The address of `mlflow.db` in the project's root, wherever that lies today."""
    return f"sqlite:///{project_root() / 'mlflow.db'}"


def as_noted(address: str) -> str:
    """The address as a journal holds it: without credentials, and '' for the project's own
    database, so that a project that was moved or copied does not send to its old place."""
    return "" if address == own_database() else without_credentials(address)


def database_path(address: str) -> Path | None:
    """The file of a SQLite address, `None` for any other."""
    prefix = "sqlite:///"
    return Path(address.removeprefix(prefix)).resolve() if address.startswith(prefix) else None


def is_server(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def require_answer(address: str) -> None:
    """Look within a second or two whether a store can be used; MLflow would try for minutes.

    Raises:
        ConnectionError: what is wrong, in words: a server is silent, a database is locked, damaged
            or cannot be opened.
    """
    database = database_path(address)
    if is_server(address):
        reached = _server_answers(address)
    elif database is not None:
        _try_database(database)
        return
    else:
        reached = _port_answers(address)
    if not reached:
        raise ConnectionError(f"{without_credentials(address)} does not answer")


def require_whole_database(address: str) -> None:
    """Read a SQLite database through.

    Raises:
        UserError: it is damaged or cannot be opened; the message says what saves it.
    """
    path = database_path(address)
    try:
        require_answer(address)
        if path is not None:
            with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as database:
                found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise ConnectionError(_damaged(path, found))
    except sqlite3.DatabaseError as error:
        raise UserError(_damaged(path, str(error))) from None
    except ConnectionError as error:
        raise UserError(str(error)) from None


def _server_answers(address: str) -> bool:
    parts = urlsplit(address)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    try:
        urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # a proxy that wants a login is somebody
    except (OSError, ValueError):
        return False
    return True


def _port_answers(address: str) -> bool:
    """Whether anybody listens where a PostgreSQL, MySQL or SQL Server address points."""
    parts = urlsplit(address)
    port = parts.port or PORTS.get(parts.scheme.split("+")[0])
    if not parts.hostname or port is None:
        return True  # a kind of address that MLflow knows and we do not
    try:
        socket.create_connection((parts.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _try_database(path: Path) -> None:
    """Open for writing, as a delivery will, and leave all as it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("SELECT count(*) FROM sqlite_master")
            database.rollback()
    except sqlite3.OperationalError as error:
        raise ConnectionError(f"{path} cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        raise ConnectionError(_damaged(path, str(error))) from None
    except OSError as error:
        raise ConnectionError(f"{path} cannot be used: {error.strerror}") from None


def _damaged(path: Path | None, reason: str) -> str:
    return (
        f"{path} is damaged ({reason}): move it away, and a new one is made, to which runs that "
        f"wait are sent; `sqlite3 {path} .recover | sqlite3 NEW` saves what can be read of it"
    )
