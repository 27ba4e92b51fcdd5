"""A real HTTP server on loopback that speaks Ollama's protocol and scores by a fixed rule.

It stands in for the model alone: client, transport, streaming and parsing are the real ones.
`fault(question, asked)` injects a fault into the `asked`-th request (from 0) of a question: a key
of REPLIES, or 500, 404, refused, slow, trickle, cut stream, reset, garbage.
"""

import html
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gptmill.params import Judge

DIGEST = "365c0bd3c000a25d28ddbf732fe1c6add414de7275464c4e4d1c3b5fcb5d8ad1"
SLOW_SECONDS = 0.6

REPLIES = {
    "empty": "",
    "prose": "I would give this answer 85 out of 100.",
    "wrong schema": '{"rating": 90}',
    "101": '{"score": 101}',
    "null": '{"score": null}',
    "text null": "null",
    "refusal": "I'm sorry, but I can't help with grading this.",
    "number as text": '{"score": "90"}',
    "two scores": '{"score": 5, "score": 100}',
    "cut short": '{"sco',
}
"""Faults that are complete replies."""


def sections(question: str) -> dict[str, str]:
    """The tagged parts of the house's wording, unescaped."""
    found = re.findall(r"<(\w+)>\n(.*?)\n</\1>", question, flags=re.DOTALL)
    return {name: html.unescape(text) for name, text in found}


def rule(reference: str, candidate: str) -> int:
    """The model: 100 for the reference, 0 for another number, else by shared words up to 60."""
    if candidate.strip() == reference.strip():
        return 100
    if set(re.findall("[0-9]+", candidate)) - set(re.findall("[0-9]+", reference)):
        return 0
    wanted, given = set(reference.split()), set(candidate.split())
    return round(60 * len(wanted & given) / max(1, len(wanted | given)))


class OllamaDouble(ThreadingHTTPServer):
    """Answers /api/version, /api/tags, /api/show and /api/chat."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = {"llama3:latest": DIGEST}
        self.capabilities = ["completion"]
        self.longest = 8192
        self.chats: list[dict[str, Any]] = []
        self.fault: Callable[[str, int], str | None] = lambda question, asked: None
        self.score: Callable[[dict[str, str]], int] = lambda parts: rule(
            parts["reference"], parts["candidate"]
        )
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, body: dict[str, Any]) -> tuple[str, int]:
        """The question of a chat request without the note on a retry, and how often it came."""
        question = body["messages"][-1]["content"].split("\n\nYour last reply was")[0]
        with self._lock:
            self.chats.append(body)
            self._asked[question] += 1
            return question, self._asked[question] - 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: OllamaDouble

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        models = [
            {"name": name, "model": name, "digest": d} for name, d in self.server.models.items()
        ]
        answers = {"/api/version": {"version": "0.9.6"}, "/api/tags": {"models": models}}
        self._json(200 if self.path in answers else 404, answers.get(self.path, {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/show":
            information = {"general.architecture": "llama"}
            information |= {"llama.context_length": self.server.longest}
            self._json(200, {"model_info": information, "capabilities": self.server.capabilities})
        else:
            assert self.path == "/api/chat"
            self._chat(body)

    def _chat(self, body: dict[str, Any]) -> None:
        question, asked = self.server.count(body)
        fault = self.server.fault(question, asked)
        if fault in ("500", "refused"):
            error = {"error": "llama runner process has terminated"}
            return self._json(500 if fault == "500" else 400, error)
        if fault == "404":
            return self._json(404, {"error": "model 'llama3' not found"})
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        if fault in REPLIES:
            return self._stream(body, REPLIES[fault], fault)
        score = self.server.score(sections(question))
        self._stream(body, json.dumps({"score": score}), fault)

    def _stream(self, body: dict[str, Any], text: str, fault: str | None) -> None:
        window = body["options"]["num_ctx"]
        end = {"done": True, "done_reason": "length" if fault == "cut short" else "stop"}
        read = sum(len(message["content"]) for message in body["messages"]) // 4
        end["prompt_eval_count"] = window // 2 + 2 if read > window else read
        self.send_response(200)
        if fault == "reset":
            self.send_header("Content-Length", "100000")
        self.end_headers()
        size = max(1, -(-len(text) // 4))
        for piece in (text[:size], *(text[i : i + size] for i in range(size, len(text), size))):
            self._line({"message": {"role": "assistant", "content": piece}, "done": False})
            if fault in ("cut stream", "reset"):
                return
            if fault == "garbage":
                self.wfile.write(b"<html>502 Bad Gateway</html>\n")
            if fault == "trickle":
                time.sleep(SLOW_SECONDS * 0.45)
        self._line({"message": {"role": "assistant", "content": ""}} | end)

    def _line(self, value: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(value).encode() + b"\n")
        self.wfile.flush()

    def _json(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def ollama() -> Iterator[OllamaDouble]:
    with OllamaDouble() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def parameters(ollama: OllamaDouble) -> Judge:
    return Judge(
        backend="ollama",
        model="llama3",
        host=ollama.address,
        seed=123,
        context_length=4096,
        timeout=5.0,
        retries=2,
        requests_in_flight=4,
        minimum_coverage=0.9,
        on_failed_controls="warn",
        bootstrap_samples=500,
        rubric="graded",
        control_samples=20,
    )


@pytest.fixture
def responses() -> list[dict[str, Any]]:
    """Twelve answers: eight right, two partly, one wrong, one empty."""
    entries = []
    for number in range(12):
        right = f"The {number} cats were chased by dog {number}."
        entries.append(
            {
                "instruction": "Rewrite in the passive voice.",
                "input": f"Dog {number} chased the {number} cats.",
                "output": right,
                "family": "passive" if number % 2 else "active",
                "response": right,
            }
        )
    entries[8]["response"] = "The 8 cats were chased."
    entries[9]["response"] = "The 9 cats ran."
    entries[10]["response"] = "Bananas!"
    entries[11]["response"] = "  \n"
    return entries
