"""Questions to verdicts: retries within bounds, replies cached, requests in flight."""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from gptmill.errors import UserError
from gptmill.files import read_json, write_json
from gptmill.judge.reply import Fault, Prompt, Reply, ReplyFault, Server, TransportFault
from gptmill.process.interrupt import keeps
from gptmill.process.pool import impatient_pool

Value = TypeVar("Value")

FIRST_PAUSE = 0.25
"""Seconds before a failed request is sent again; doubled each time."""


@dataclass(frozen=True)
class Question(Generic[Value]):
    """A prompt and the parser of its reply; a repetition is asked anew, past the cache."""

    prompt: Prompt
    parse: Callable[[str], Value]
    repetition: int = 0


@dataclass(frozen=True)
class Verdict(Generic[Value]):
    """A parsed reply, or None when no attempt brought one; `faults` says why, attempt by attempt.

    Of a verdict that was reached, only unusable replies are listed: whether a network failed on
    the way is not a property of the result, which must be the same on a rerun.
    """

    value: Value | None
    faults: tuple[str, ...] = ()


class Examiner:
    """Asks a server, remembers its replies in `folder`, and asks again where that can help.

    Replies are kept, not verdicts, under a hash of all that determines them: a finished run asks
    nothing again, an interrupted one continues, a change of wording, model or options asks anew.
    """

    def __init__(self, server: Server, folder: Path, seed: int, retries: int):
        self._server, self._folder = server, folder
        self._seed, self._retries = seed, retries
        self._stop = threading.Event()

    def examine(self, questions: Sequence[Question[Value]], workers: int) -> list[Verdict[Value]]:
        """A verdict for each question, in order, with up to `workers` requests in flight.

        The same question twice is asked once: two replies may differ, and only one is kept.

        Raises:
            UserError: the server or its model is gone; replies so far are kept.
        """
        keys = [
            _key(self._request(question.prompt, self._seed, question.repetition))
            for question in questions
        ]
        keeps("every reply so far")
        with (
            impatient_pool(workers) as pool,
            tqdm(total=len(set(keys)), desc="judge", unit="verdict", disable=None) as bar,
        ):
            futures: dict[str, Future[Verdict[Value]]] = {}
            for key, question in zip(keys, questions):
                if key not in futures:
                    futures[key] = pool.submit(self._examine_one, question)
                    futures[key].add_done_callback(lambda _: bar.update())
            try:
                return [futures[key].result() for key in keys]
            except BaseException:
                self._stop.set()  # ends pauses too
                raise

    def _examine_one(self, question: Question[Value]) -> Verdict[Value]:
        prompt = question.prompt
        faults: list[Fault] = []
        for attempt in range(self._retries + 1):
            unusable = sum(isinstance(fault, ReplyFault) for fault in faults)
            try:
                # Temperature 0 repeats itself: an unusable reply needs another seed and prompt.
                reply = self._reply(prompt, self._seed + unusable, question.repetition)
                value = question.parse(_whole(reply))
                return Verdict(value, tuple(str(f) for f in faults if isinstance(f, ReplyFault)))
            except ReplyFault as fault:
                faults.append(fault)
                prompt = question.prompt.after(fault)
            except TransportFault as fault:
                faults.append(fault)
                self._pause(attempt, fault)
            if not faults[-1].retry or self._stop.is_set():
                break
        return Verdict(None, tuple(map(str, faults)))

    def _pause(self, attempt: int, fault: Fault) -> None:
        """Wait before the next attempt; a server that is gone after the last ends the run."""
        if attempt < self._retries:
            self._stop.wait(FIRST_PAUSE * 2**attempt)
        elif fault.kind == "unreachable":
            raise UserError(
                f"the judge's server went away ({fault}): start it and run again; "
                "replies so far are kept and not asked for again"
            )

    def _request(self, prompt: Prompt, seed: int, repetition: int) -> dict[str, Any]:
        """All that determines a reply."""
        asked = asdict(prompt) | {"seed": seed, "repetition": repetition}
        return {**self._server.identity, **asked}

    def _reply(self, prompt: Prompt, seed: int, repetition: int) -> Reply:
        request = self._request(prompt, seed, repetition)
        key = _key(request)
        path = self._folder / key[:2] / f"{key}.json"
        if path.exists():
            return Reply(**read_json(path, dict)["reply"])
        reply = self._server.ask(prompt, seed)
        write_json(path, {"request": request, "reply": asdict(reply)})
        return reply


def _key(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _whole(reply: Reply) -> str:
    if not reply.finished:
        raise ReplyFault("cut short", f"{len(reply.text)} characters when the token limit came")
    return reply.text
