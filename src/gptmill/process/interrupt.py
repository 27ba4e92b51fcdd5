"""Ctrl-C and SIGTERM: one line that says what is kept, and the exit status that shells expect.

A process ends at once while it only imports, and in order, by an exception, while it works. It then
leaves by `os._exit`: worker threads that wait for a network are not waited for.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from gptmill.process.ranks import is_first

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 15.0  # to leave in order, as a library that waits for its threads may not


class Terminated(SystemExit):
    """SIGTERM as an exception, so that what was begun is left as it should be."""


@dataclass
class _Ending:
    """What the line will say; `asked` is the signal that has come."""

    name: str = "gptmill"
    kept: str = ""
    otherwise: str = ""
    reason: str = ""
    asked: int = 0


_ending = _Ending()


def keeps(what: str) -> None:
    """Say what a stop from now on would keep, as in "the checkpoint of step 400"."""
    _ending.kept = what


def because(reason: str) -> None:
    """Say why the process is about to stop itself."""
    _ending.reason = reason


def end_at_once(name: str, otherwise: str = "") -> None:
    """From here on a signal ends the process at once: it has begun nothing yet.

    Args:
        name: what is said to have ended.
        otherwise: what the line says as long as nothing is kept.
    """
    _ending.name, _ending.otherwise = name, otherwise
    _answer(lambda number, frame: _leave(number))


@contextmanager
def in_order(name: str) -> Iterator[None]:
    """In the block a signal is an exception; when what was begun is left, the line and the end.

    A second Ctrl-C does not wait for that, and nothing longer than `PATIENCE_SECONDS`. Whatever
    error the first one turns into on its way, as in a library that catches it, it is still the
    user's stop and no traceback.
    """
    _ending.name = name
    _ending.kept = ""
    before = _answer(_raise)
    try:
        yield
    except BaseException as error:
        stopped = _ending.asked or _signal_of(error)
        if stopped:
            _leave(stopped)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answer(handler: Callable[[int, FrameType | None], None]) -> dict[int, object]:
    """Set a handler and give back those before it. What `nohup` or `&` ignores stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _raise(number: int, frame: FrameType | None) -> None:
    if _ending.asked:
        _leave(number)
    _ending.asked = number
    timer = threading.Timer(PATIENCE_SECONDS, _leave, (number,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(128 + number)


def _signal_of(error: BaseException) -> int:
    """The signal behind an exception that another handler than ours made of it; 0 if none."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    by_signal = {128 + number: number for number in SIGNALS}
    return by_signal.get(error.code, 0) if isinstance(error, SystemExit) else 0


def _leave(number: int) -> NoReturn:
    """Print the line and end with 130 or 143."""
    word = "interrupted" if number == signal.SIGINT else "terminated"
    why = f", since {_ending.reason}" if _ending.reason else ""
    rest = _ending.otherwise
    if _ending.kept:
        rest = f"{_ending.kept} is kept, and the same command continues from there"
    line = f"{_ending.name} {word}{why}" + (f": {rest}" if rest else "")
    # Past Python's buffers: the signal may have come in the middle of a print. Whoever reads either
    # may be gone.
    with suppress(OSError, RuntimeError, ValueError):
        if is_first():
            os.write(2, f"\n{line}\n".encode())
    with suppress(OSError, RuntimeError, ValueError):
        sys.stdout.flush()
    os._exit(128 + number)
