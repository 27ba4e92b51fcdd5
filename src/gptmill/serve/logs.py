"""What the server writes to its log, as text or as a line of JSON each, and whose request it is."""

import json
import logging
import re
import secrets
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OURS = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)  # what a client's id may be made of

access_log = logging.getLogger("gptmill.access")
# Of the request that is answered here; an engine's thread answers many, and names them itself.
request_id: ContextVar[str] = ContextVar("request_id", default="")


def id_of(given: str | None) -> str:
    """A request's id: the client's where that is a word, or else a new one."""
    return given if given and OURS.fullmatch(given) else secrets.token_hex(12)


def configure(level: str, format: str) -> None:
    """Have everything logged to standard error from this level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if format == "json" else TextLines(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """Lines for people, with the request's id where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        about = _request_of(record)
        return super().format(record) + (f" [{about}]" if about else "")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, and what was given as
    `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if about := _request_of(record):
            line["request_id"] = about
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _request_of(record: logging.LogRecord) -> str:
    return getattr(record, "request_id", "") or request_id.get()
