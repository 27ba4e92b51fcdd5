"""Every field has a bound, nothing of a request holds up the others, and nobody dawdles."""

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gptmill.serve import answer as answers
from gptmill.serve import body as bounds
from gptmill.serve import guard, run, service
from gptmill.serve.answer import Answer
from gptmill.serve.app import MAX_BODY, STATUSES
from gptmill.serve.prompts import Message, conversation_ids
from gptmill.tokenizer import load_tokenizer
from tests.unit.serve.conftest import HTTP, eventually

TURN = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/api/chat", {"messages": [TURN] * 2049}, "at most 2048 items"),
        ("/v1/chat/completions", {"messages": [TURN] * 2049}, "at most 2048 items"),
        ("/api/generate", {"prompt": "a", "options": {"stop": ["x"] * 65}}, "at most 64 items"),
        ("/v1/completions", {"prompt": "a", "stop": ["x"] * 65}, "at most 64 items"),
        ("/v1/completions", {"prompt": "a", "stop": "x" * 257}, "at most 256 characters"),
        ("/api/generate", {"model": "x" * 257}, "at most 256 characters"),
        ("/classify", {"model": None, "texts": ["x"] * 4097}, "at most 4096 items"),
        ("/classify", {"model": None, "text": "x", "top_k": 1}, "unknown option top_k"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_beyond_a_bound_names_it(path, body, message, running):
    answer = HTTP.post(running.address + path, json={"model": "instructions", **body})
    assert answer.status_code == 400 and message in answer.text


def test_the_bounds_and_statuses_are_documented(running):
    page = Path("docs/serving.md").read_text()
    for name in ("MAX_MESSAGES", "MAX_TEXTS", "MAX_STOPS", "MAX_STOP", "MAX_NAME"):
        assert f"| {getattr(bounds, name):,} |" in page, name
    assert f"| {MAX_BODY:,} |" in page
    for seconds in (guard.BODY_SECONDS, guard.SEND_SECONDS, run.HEADER_SECONDS):
        assert f"| {seconds:g} s |" in page
    document = HTTP.get(f"{running.address}/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            said = set(operation["responses"])
            assert said == {"200", *map(str, STATUSES)}, path
    assert all(str(status) in page for status in STATUSES)


def test_a_million_spaces(running, models):
    """tiktoken's pattern panics at so many; the encoding is exact all the same."""
    tokenizer = load_tokenizer(models / "text")
    text = "the cat" + " " * 1_000_000 + "sat"
    body = {"model": "text", "prompt": text, "stream": False, "options": {"num_predict": 1}}
    answer = HTTP.post(f"{running.address}/api/generate", json=body, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["context"][:-1] == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_conversation_is_read_once(models):
    """The time of 2,000 turns is that of their tokens, not of their square."""
    tokenizer = load_tokenizer(models / "instructions")
    turns = [Message("user", "a"), Message("assistant", "b")] * 1000
    began = time.process_time()
    ids = conversation_ids([*turns, Message("user", "c")], "phi3", tokenizer, 90)
    assert time.process_time() - began < 2
    assert tokenizer.decode(ids).endswith("<|user|>\nc\n<|assistant|>\n") and len(ids) <= 90


def test_slow_work_is_within_the_request_s_time(start, monkeypatch):
    monkeypatch.setattr(service, "_classify", lambda *_: time.sleep(1))
    with start(timeout=0.3) as running:
        for body in ({"text": "a"}, {"texts": ["a"] * 100}):
            began = time.monotonic()
            late = HTTP.post(f"{running.address}/classify", json=body)
            assert late.status_code == 504 and "took longer" in late.json()["error"]
            assert time.monotonic() - began < 5


def test_hostile_schemas_hold_up_no_plain_request(start, monkeypatch):
    """They wait for one another in threads of their own."""
    with start(timeout=8) as running:
        address = f"{running.address}/api/generate"
        plain = {"model": "text", "prompt": "a", "stream": False, "options": {"num_predict": 2}}
        HTTP.post(address, json=plain)  # opens the model
        model = running.service._open["text"]
        monkeypatch.setattr(type(model), "constraint", lambda *_: time.sleep(4))
        with ThreadPoolExecutor(8) as pool:
            hostile = [
                pool.submit(HTTP.post, address, json={**plain, "format": {"const": n}}, timeout=30)
                for n in range(8)
            ]
            eventually(lambda: running.service._preparing["text"] == 8)
            began = time.monotonic()
            assert HTTP.post(address, json=plain).status_code == 200
            assert time.monotonic() - began < 3.5
            late = [answer.result().status_code for answer in hostile]
        assert late.count(504) >= 4


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.parametrize(
    "sent", [b"", b"POST /api/generate HT", b"GET /health HTTP/1.1\r\nHost: a"]
)
def test_a_head_that_never_ends_is_cut(sent, start, monkeypatch):
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.3)
    with start() as running, connect(running.address) as connection:
        connection.sendall(sent)
        assert connection.recv(1000) == b""


def test_a_second_head_that_never_ends_is_cut(start, monkeypatch):
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.3)
    with start() as running, connect(running.address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /health HT")
        while part := connection.recv(1000):
            assert part


def test_a_body_that_never_ends_is_408(start, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
    with start() as running, connect(running.address) as connection:
        connection.sendall(head)
        answer = connection.recv(65536)
        assert b" 408 " in answer.split(b"\r\n")[0]


def test_who_does_not_read_is_given_up(start, monkeypatch):
    monkeypatch.setattr(guard, "SEND_SECONDS", 0.3)
    body = json.dumps({
        "model": "text", "prompt": "the cat", "logprobs": True, "top_logprobs": 20,
        "options": {"temperature": 0},
    }).encode()  # fmt: skip
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with start(max_tokens=10**6) as running, connect(running.address) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head.encode() + body)
        eventually(lambda: "text" in running.service._open, 20)
        engine = running.service._open["text"].engine
        eventually(lambda: engine.count() == 1, 20)
        eventually(lambda: engine.count() == 0, 60)
        # The engine is free at once; the request is counted when its connection is given up.
        left = 'gptmill_requests_total{path="/api/generate",status="499"} 1.0'
        eventually(lambda: left in HTTP.get(f"{running.address}/metrics").text, 20)


async def _pending() -> Answer:
    answer = Answer()
    for number in range(answers.MAX_PENDING + 50):
        answer._take(number)
    return answer


def test_what_waits_for_a_reader_is_bounded():
    pending = asyncio.run(_pending())
    assert pending._events.qsize() == answers.MAX_PENDING + 1
    assert "too slowly" in str(pending._events._queue[-1])


def test_a_body_is_not_compressed(running):
    headers = {"content-encoding": "gzip"}
    answer = HTTP.post(f"{running.address}/api/generate", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415 and "gzip" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/nowhere", 404, None), ("POST", "/api/nowhere", 404, None),
        ("PUT", "/api/pull", 404, None), ("GET", "/api/chat", 405, "POST"),
        ("POST", "/api/tags", 405, "GET"), ("POST", "/", 405, "GET"),
        ("DELETE", "/v1/models", 405, "GET"), ("GET", "/../secret", 404, None),
    ],
)  # fmt: skip
def test_unknown_paths_and_methods(method, path, status, allow, running):
    answer = HTTP.request(method, running.address + path)
    assert answer.status_code == status
    assert allow is None or allow in answer.headers["allow"]


@pytest.mark.parametrize("depth", [900, 5000, 100_000])
def test_a_body_nested_deeply(depth, running):
    content = b'{"model": "text", "format": ' + b"[" * depth + b"]" * depth + b"}"
    for path in ("/api/generate", "/v1/completions", "/classify"):
        answer = HTTP.post(running.address + path, content=content)
        assert answer.status_code == 400
