"""A judge behind OpenAI's protocol, over real HTTP."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gptmill.errors import UserError
from gptmill.judge import examine
from gptmill.judge.openai_compatible import OpenAIServer
from gptmill.judge.reply import Prompt, ReplyFault, TransportFault
from gptmill.judge.rubric import GRADED
from gptmill.judge.run import judge
from tests.unit.judge import conftest


class OpenAIDouble(ThreadingHTTPServer):
    """Scores by the same rule as the Ollama double; `fault` names the next reply's fault."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.chats: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.fault = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIDouble

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.server.fault == "key"
        value = {"data": [{"id": "gptmill", "object": "model"}]}
        self._send(401 if wanted else 200, json.dumps(value))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.chats.append(body)
        self.server.keys.append(self.headers["authorization"])
        fault = self.server.fault
        if fault in ("500", "400", "404", "401"):
            return self._send(int(fault), json.dumps({"error": {"message": "no"}}))
        if fault == "llama-cpp-python":  # its `type` is one of two words, and pydantic's 422
            form = body.get("response_format", {"type": "text"})
            if form["type"] not in ("text", "json_object"):
                return self._send(422, json.dumps({"error": {"message": "literal_error"}}))
        if fault == "slow":
            time.sleep(conftest.SLOW_SECONDS)
        if fault == "garbage":
            return self._send(200, "<html>Bad Gateway</html>")
        parts = conftest.sections(body["messages"][-1]["content"])
        text = json.dumps({"score": conftest.rule(parts["reference"], parts["candidate"])})
        choice = {
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if fault == "cut short" else "stop",
        }
        self._send(200, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9}}), fault)

    def _send(self, status: int, text: str, fault: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) + 100 * (fault == "reset")))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server() -> Iterator[OpenAIDouble]:
    with OpenAIDouble() as double:
        thread = threading.Thread(target=double.serve_forever, args=(0.02,))
        thread.start()
        yield double
        double.shutdown()
        thread.join()


def _open(server: OpenAIDouble, model: str = "gptmill", key: str = "") -> OpenAIServer:
    return OpenAIServer(server.address, model, key=key, timeout=0.4, reply_tokens=16)


PROMPT = GRADED.prompt({"instruction": "Name a color.", "output": "blue"}, "blue")


def test_a_whole_judgement(server, parameters, responses, tmp_path, monkeypatch):
    """The same figures as through Ollama, for the model's rule is the same."""
    monkeypatch.setattr(examine, "FIRST_PAUSE", 0.01)
    through_ollama, _ = judge(responses, parameters, state=tmp_path / "ollama")
    changes = {"backend": "openai", "host": f"{server.address}/v1", "model": "gptmill"}
    metrics, scores = judge(
        responses, parameters.model_copy(update=changes), state=tmp_path / "openai"
    )
    told = {"backend", "judge/model", "judge/digest", "judge/version"}
    assert {key: value for key, value in metrics.items() if key not in told} == {
        key: value for key, value in through_ollama.items() if key not in told
    }
    assert metrics["backend"] == "openai" and scores[0]["score"] == 100


def test_the_request(server):
    reply = _open(server, key="secret").ask(PROMPT, seed=7)
    assert (reply.text, reply.finished, reply.prompt_tokens) == ('{"score": 100}', True, 9)
    body = server.chats[0]
    assert body["response_format"]["json_schema"]["schema"] == PROMPT.schema
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0, 7, 16)
    assert server.keys == ["Bearer secret"]
    _open(server).ask(Prompt("", PROMPT.user, None), seed=7)
    assert "response_format" not in server.chats[1] and server.keys[1] is None


def test_llama_cpp_pythons_form_of_a_schema_is_found_once(server):
    server.fault = "llama-cpp-python"
    client = _open(server)
    assert client.ask(PROMPT, seed=1).text == '{"score": 100}'
    client.ask(PROMPT, seed=2)
    forms = [body["response_format"]["type"] for body in server.chats]
    assert forms == ["json_schema", "json_object", "json_object"]
    assert server.chats[-1]["response_format"]["schema"] == PROMPT.schema


@pytest.mark.parametrize(
    ("fault", "kind", "retry"),
    [
        ("500", "server error", True),
        ("400", "request refused", False),
        ("slow", "timeout", True),
        ("garbage", "malformed protocol", True),
        ("reset", "connection lost", True),
    ],
)
def test_faults(server, fault, kind, retry):
    client = _open(server)
    server.fault = fault
    with pytest.raises(TransportFault) as error:
        client.ask(PROMPT, seed=1)
    assert (error.value.kind, error.value.retry) == (kind, retry)


def test_a_reply_at_the_token_limit_is_unfinished(server):
    client = _open(server)
    server.fault = "cut short"
    assert not client.ask(PROMPT, seed=1).finished
    with pytest.raises(ReplyFault, match="cut short"):
        examine._whole(client.ask(PROMPT, seed=1))


@pytest.mark.parametrize(("fault", "message"), [("404", "no longer has"), ("401", "refuses us")])
def test_what_no_retry_mends_ends_the_run(server, fault, message):
    client = _open(server)
    server.fault = fault
    with pytest.raises(UserError, match=message):
        client.ask(PROMPT, seed=1)


def test_preflight(server):
    with pytest.raises(UserError, match=r"no model other: .* it has gptmill"):
        _open(server, "other")
    server.fault = "key"
    with pytest.raises(UserError, match="set OPENAI_API_KEY"):
        _open(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="no server at"):
        _open(server)


def test_ollama_native_is_no_openai_server(ollama):
    with pytest.raises(UserError, match="not answer as OpenAI's does"):
        OpenAIServer(ollama.address, "llama3", key="", timeout=1.0, reply_tokens=16)
