"""Schemas tried in a process of their own, where a crash or a hang harms nobody.

llguidance is native code that reads what strangers send. What it survives here, within bounds of
time, memory and stack that are tighter than the server's, it survives in the server.

The process reads lines of JSON, first the vocabulary and then schemas, and answers each with a
line: the reason for which it refuses, or nothing.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.serve.grammar import compile_schema, probe, token_table

SECONDS = 5.0  # of computing on one schema
WAIT_SECONDS = 30.0  # for it, beside others who compute
START_SECONDS = 60.0  # of the process itself, beside which others may compute
MEMORY = 1024 * 2**20  # bytes beyond what the process has when it begins
STACK = 4 * 2**20  # bytes; a thread of the server has twice that


class Trial:
    """One process, begun with the first schema and kept; one that dies is begun anew.

    Args:
        vocabulary: as `vocabulary_of` describes it.
    """

    def __init__(self, vocabulary: Mapping[str, Any]) -> None:
        self._vocabulary = json.dumps(vocabulary)
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()

    def check(self, schema: str, deadline: float) -> None:
        """Compile a schema there, one line of JSON, and write a little by it.

        Args:
            deadline: `time.monotonic()` after which nobody waits any more.

        Raises:
            UserError: it is refused, or ends the process by a crash or by the time it takes.
            TimeoutError: the deadline came first, or nothing for long.
        """
        if not self._turn.acquire(timeout=max(0, deadline - time.monotonic())):
            raise TimeoutError("other schemas are tried first")
        try:
            process = self._begin(deadline)
            until = min(deadline, time.monotonic() + WAIT_SECONDS)
            answer = self._ask(process, schema, until)
        finally:
            self._turn.release()
        if answer is None and time.monotonic() >= until:
            raise TimeoutError("the request's time is over")
        if answer is None:
            answer = (
                "format is a JSON schema that ended the process in which it was tried, by a crash "
                f"or after {SECONDS:g} s: simplify it"
            )
        if answer:
            raise UserError(answer)

    def close(self) -> None:
        """End the process."""
        with self._turn:
            self._end()

    def _begin(self, deadline: float) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        path = os.pathsep.join(filter(None, sys.path))
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "gptmill.serve.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
            env={**os.environ, "PYTHONPATH": path},
        )
        until = min(deadline, time.monotonic() + START_SECONDS)
        if self._ask(process, self._vocabulary, until) is None:
            raise TimeoutError("the process that tries schemas did not start in time")
        return process

    def _ask(self, process: subprocess.Popen[str], line: str, until: float) -> str | None:
        """The answer to a line. If none comes in time, None, and the process is ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(max(0, until - time.monotonic()), process.kill)
        timer.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        timer.cancel()
        if answer:
            return json.loads(answer)
        self._end()
        return None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.close()
            with suppress(BrokenPipeError):  # it had not read all
                process.stdin.close()


def main() -> None:
    """What the process does: all in a thread, whose stack has a size of our choice."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this
    threading.stack_size(STACK)
    worker = threading.Thread(target=_answer_all)
    worker.start()
    worker.join()


def _answer_all() -> None:
    table = token_table(json.loads(sys.stdin.readline()))
    _limit_memory()
    print('""', flush=True)
    for schema in sys.stdin:
        _bound_computing(SECONDS)
        try:
            probe(compile_schema(table, schema), table.vocab_size)
            answer = ""
        except UserError as error:
            answer = str(error)
        _bound_computing(0)
        print(json.dumps(answer), flush=True)


def _bound_computing(seconds: float) -> None:
    """End this process after so much of its own time; 0 is without end."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows, where time is the only bound
        return
    used = _address_space()
    if used:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))


def _address_space() -> int:
    """Bytes of this process's address space; 0 where the system does not tell (macOS, which does
    not keep the limit either)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return 0
    return pages * mmap.PAGESIZE


if __name__ == "__main__":
    main()
