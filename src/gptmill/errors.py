"""The one error that means: the user can mend this. And what no message may give away."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST_SECRET = 6  # a shorter value would be struck out of words that have nothing to do with it

# Names of variables and of an address's query fields that hold a secret.
_SECRET = r"(?:key|token|password|passwd|secret|signature|credentials?|sig|auth)"
_VARIABLE = re.compile(rf"(?:^|_){_SECRET}$", re.IGNORECASE)
_USER_OF_ADDRESS = re.compile(r"(?<=://)[^\s/?#]*@")
# `user:password@host` without a scheme, as Ollama reads addresses.
_USER_OF_HOST = re.compile(r"(?<![^\s'\"(=])[^\s:/@'\"(=]+:[^\s/@'\"]+@(?=[\w\[])")
_QUERY = re.compile(rf"([?&][^=&\s]*{_SECRET}=)[^&\s#'\"]+", re.IGNORECASE)
_HEADER = re.compile(r"\b(Bearer|Basic) +[\w.~+/=-]{6,}", re.IGNORECASE)


class UserError(Exception):
    """A failure with a cause outside the code: input, parameters, machine or network.

    The message says what was wrong, where, and what to do; credentials in it are struck out.
    Stages and the command line print it without a traceback and exit with status 1; anything else
    that is raised is a defect of ours.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


def first_line(error: BaseException) -> str:
    """The first line of a library's error, or its name where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def without_credentials(text: str) -> str:
    """The text as it may be printed, stored or sent.

    Struck out are the user and password of addresses, secrets in their queries, authorization
    headers, and the values of the environment's own secrets (`HF_TOKEN`, `OPENAI_API_KEY`,
    `MLFLOW_TRACKING_PASSWORD`, the passwords in `GPTMILL_MIRROR`, `HTTPS_PROXY` and their like)
    wherever they stand.
    """
    text = _USER_OF_HOST.sub("", _USER_OF_ADDRESS.sub("", text))
    text = _HEADER.sub(rf"\1 {HIDDEN}", _QUERY.sub(rf"\1{HIDDEN}", text))
    for secret in _secrets_of_environment():
        text = text.replace(secret, HIDDEN)
    return text


def hide_credentials_in_tracebacks() -> None:
    """From now on an uncaught exception of this process is shown without credentials."""
    sys.excepthook = _print_traceback


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(without_credentials(text), end="", file=sys.stderr)


def _secrets_of_environment() -> set[str]:
    found = set()
    for name, value in os.environ.items():
        found |= {value} if _VARIABLE.search(name) else set(_passwords(value))
    return {secret for secret in found if len(secret) >= SHORTEST_SECRET}


def _passwords(address: str) -> Iterator[str]:
    """The password of an address, as it is written and as it is meant; it may hold a / or an @."""
    user, at, _ = address.partition("://")[2].rpartition("@")
    password = user.partition(":")[2]
    if at:
        yield from (password, unquote(password))
