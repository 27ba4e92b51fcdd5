"""What holds for every path: limits, leaving, overload, other pages, metrics, the classifier."""

import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import ollama
import pytest

from gptmill.cli import main
from gptmill.errors import UserError
from gptmill.runtime.session import Classifier
from gptmill.serve.app import MAX_BODY
from gptmill.serve.engine import Engine
from gptmill.serve.run import listen
from gptmill.serve.service import Limits, Service
from tests.unit.serve.conftest import HTTP, Running, alone, eventually

# Greedy, this model repeats itself for ever.
ENDLESS = {"model": "text", "prompt": "the cat", "options": {"temperature": 0}}


@pytest.fixture
def post(running):
    def post(path: str, **more) -> httpx.Response:
        return HTTP.post(running.address + path, **more)

    return post


def live(running: Running) -> int:
    """Requests of the model `text` that have not ended."""
    return len(running.service._open["text"].engine._live)


def endless_chunks(address: str, **changes):
    return HTTP.stream("POST", f"{address}/api/generate", json=ENDLESS | changes, timeout=20)


def test_many_at_once_get_what_each_gets_alone(running, models):
    prompts = ["the cat", "the dog ran over the hill", "a", "mat", "on", "hill the"]

    client = ollama.Client(running.address)

    def ask(number: int) -> tuple[int, str]:
        prompt = prompts[number % len(prompts)]
        options = {"temperature": number % 2 * 1.5, "top_k": 0, "top_p": 1.0, "seed": number,
                   "num_predict": 25}  # fmt: skip
        parts = client.generate("text", prompt, options=options, stream=True)
        return number, "".join(part.response for part in parts)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(48)))
    for number, text in answers:
        sampling = {"temperature": number % 2 * 1.5, "seed": number, "max_new_tokens": 25}
        assert text == alone(models, "text", prompts[number % len(prompts)], **sampling).text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(stream, start):
    with start(max_tokens=10**6) as running:
        if stream:
            with endless_chunks(running.address) as answer:
                lines = answer.iter_lines()
                assert json.loads(next(lines))["done"] is False
                assert live(running) == 1
        else:
            with pytest.raises(httpx.ReadTimeout):
                body = ENDLESS | {"stream": False}
                HTTP.post(f"{running.address}/api/generate", json=body, timeout=1.0)
        eventually(lambda: live(running) == 0)
        eventually(lambda: not running.service._open["text"].engine._running)


def test_a_client_that_leaves_while_it_waits(start):
    with start(max_tokens=10**6, max_batch=1) as running:
        with endless_chunks(running.address) as answer:
            lines = answer.iter_lines()  # held, or the client would leave
            next(lines)
            with pytest.raises(httpx.ReadTimeout):
                HTTP.post(f"{running.address}/api/generate", json=ENDLESS, timeout=0.5)
            eventually(lambda: live(running) == 1)
        eventually(lambda: live(running) == 0)


def test_a_full_queue_is_503_and_says_when_to_come_again(start):
    with start(max_tokens=10**6, max_batch=1, max_queue=0) as running:
        with endless_chunks(running.address) as answer:
            lines = answer.iter_lines()  # held, or the client would leave
            next(lines)
            refused = HTTP.post(f"{running.address}/api/generate", json=ENDLESS)
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert "1 requests run and 0 wait" in refused.json()["error"]
            refused = HTTP.post(
                f"{running.address}/v1/completions", json={"model": "text", "prompt": "a"}
            )
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "overloaded"
        eventually(lambda: live(running) == 0)
        body = ENDLESS | {"options": {"num_predict": 2}, "stream": False}
        assert HTTP.post(f"{running.address}/api/generate", json=body).json()["eval_count"] == 2


@pytest.fixture
def slow(monkeypatch):
    """Steps of 30 ms, so that an answer takes as long as one of a large model."""
    step = Engine._step

    def delayed(engine: Engine) -> None:
        time.sleep(0.03)
        step(engine)

    monkeypatch.setattr(Engine, "_step", delayed)


def test_time_is_over(start, slow):
    with start(max_tokens=10**6, timeout=0.6) as running:
        late = HTTP.post(f"{running.address}/api/generate", json=ENDLESS | {"stream": False})
        assert late.status_code == 504 and "took longer" in late.json()["error"]
        with endless_chunks(running.address) as answer:
            lines = [json.loads(line) for line in answer.iter_lines()]
        assert len(lines) > 2 and "took longer" in lines[-1]["error"]
        body = {"model": "text", "prompt": "the cat", "temperature": 0, "stream": True}
        body["max_tokens"] = 80
        with HTTP.stream("POST", f"{running.address}/v1/completions", json=body) as answer:
            events = [line for line in answer.iter_lines() if line]
        error = json.loads(events[-1].removeprefix("data: "))["error"]
        assert error["code"] == "timeout" and "data: [DONE]" not in events
        with pytest.raises(ollama.ResponseError, match="took longer"):
            list(ollama.Client(running.address).generate(**ENDLESS, stream=True))


def test_an_answers_tokens_are_limited(start):
    with start(max_tokens=7) as running:
        for wanted in (-1, 1000):
            body = ENDLESS | {"options": {"num_predict": wanted, "temperature": 0}, "stream": False}
            answer = HTTP.post(f"{running.address}/api/generate", json=body).json()
            assert (answer["eval_count"], answer["done_reason"]) == (7, "length")
        body = {"model": "text", "prompt": "the cat", "temperature": 0}
        answer = HTTP.post(f"{running.address}/v1/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions", "/classify"])
def test_a_body_that_is_too_large(path, post):
    body = json.dumps({"model": "text", "prompt": "a" * MAX_BODY, "text": ""}).encode()
    announced = post(path, content=body)
    chunked = post(path, content=(body[at : at + 65536] for at in range(0, len(body), 65536)))
    for answer in (announced, chunked):
        assert answer.status_code == 413 and "larger than" in json.dumps(answer.json())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model": "text"', "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[1]", "valid dictionary"),
        (b"", "required"),
        (b"{}", "model: Field required"),
        (b'{"model": "text", "stream": "perhaps"}', "stream"),
    ],
)
def test_a_body_that_is_no_request(content, message, post):
    ours = post("/api/generate", content=content)
    theirs = post("/v1/chat/completions", content=content)
    assert ours.status_code == theirs.status_code == 400
    assert message in ours.json()["error"]
    assert theirs.json()["error"]["type"] == "invalid_request_error"


def test_curl_calls_a_body_a_form_and_is_answered(post):
    form = {"content-type": "application/x-www-form-urlencoded"}
    body = json.dumps(ENDLESS | {"options": {"num_predict": 1}})
    assert post("/api/generate", content=body, headers=form).status_code == 200


def test_a_request_that_fails_harms_no_other(running, post, models, monkeypatch):
    """The engine is the real one; one request's constraint is broken."""
    model = running.service._load(running.service.card("text"))

    class Broken:
        def mask(self, logits):
            raise RuntimeError("broken")

    monkeypatch.setattr(model, "constraint", lambda schema, deadline: Broken())
    with endless_chunks(running.address) as answer:
        lines = answer.iter_lines()
        next(lines)
        failed = post("/api/generate", json=ENDLESS | {"format": "json"})
        assert failed.status_code == 500 and "broken" in failed.json()["error"]
        assert json.loads(next(lines))["done"] is False
    body = ENDLESS | {"options": {"num_predict": 12, "temperature": 0}, "stream": False}
    assert (
        post("/api/generate", json=body).json()["response"] == alone(models, "text", "the cat").text
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost.evil.example:80"},
        {"host": ""},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1.evil.example"},
        {"origin": "ftp://localhost"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/", "/api/tags", "/health"])
def test_other_pages_cannot_use_the_server(path, headers, running):
    answer = HTTP.get(running.address + path, headers=headers)
    assert answer.status_code in (400, 403)
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_page_and_local_names_can(running):
    port = running.address.rpartition(":")[2]
    for host in ("localhost", "127.0.0.1", "[::1]", "my.localhost"):
        host = f"{host}:{port}"
        headers = {"host": host, "origin": f"http://{host}"}
        assert HTTP.get(f"{running.address}/health", headers=headers).status_code == 200


def test_the_page_needs_nothing_from_elsewhere(running):
    answer = HTTP.get(running.address)
    assert answer.status_code == 200 and "text/html" in answer.headers["content-type"]
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert HTTP.head(running.address).status_code == 200
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", answer.text)


def test_classify(post, models):
    texts = ["the cat", "the dog ran over the hill"]
    expected = Classifier(models / "classifier", 1).classify(texts)
    one = post("/classify", json={"text": texts[0]}).json()
    assert one["label"] == expected[0].label
    assert one["probabilities"] == pytest.approx(expected[0].probabilities)
    many = post("/classify", json={"texts": texts, "model": "classifier"}).json()["results"]
    assert [result["label"] for result in many] == [result.label for result in expected]
    assert post("/classify", json={"texts": []}).json() == {"results": []}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "either text or texts"),
        ({"text": "a", "texts": ["a"]}, 400, "either text or texts"),
        ({"texts": ["a", ""]}, 400, "text 1 is empty"),
        ({"text": "a", "model": "text"}, 400, "is no classifier"),
        ({"text": "a", "model": "absent"}, 404, "not found"),
    ],
    ids=str,
)
def test_what_classify_refuses(body, status, message, post):
    answer = post("/classify", json=body)
    assert answer.status_code == status and message in answer.json()["error"]


def test_health_names_the_models(running):
    health = HTTP.get(f"{running.address}/health").json()
    assert health == {"status": "ok", "models": ["classifier", "instructions", "long", "text"]}


def test_metrics_count_what_happened(start):
    with start(max_batch=8) as running:
        body = ENDLESS | {"options": {"num_predict": 40}, "stream": False}
        ask = lambda _: HTTP.post(f"{running.address}/api/generate", json=body).json()  # noqa: E731
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(6)))
        HTTP.post(f"{running.address}/api/generate", json={"model": "absent"})
        HTTP.get(f"{running.address}/nowhere")
        text = HTTP.get(f"{running.address}/metrics").text
    values = dict(re.findall(r"^(gptmill_\S+) (\S+)$", text, flags=re.MULTILINE))
    value = lambda name: float(values[name])  # noqa: E731
    assert value('gptmill_requests_total{path="/api/generate",status="200"}') == 6
    assert value('gptmill_requests_total{path="/api/generate",status="404"}') == 1
    assert value('gptmill_requests_total{path="other",status="404"}') == 1
    prompts = sum(answer["prompt_eval_count"] for answer in answers)
    assert value('gptmill_tokens_total{kind="prompt",model="text"}') == prompts
    generated = sum(answer["eval_count"] for answer in answers)
    ended = sum(answer["done_reason"] == "stop" for answer in answers)
    assert value('gptmill_tokens_total{kind="generated",model="text"}') == generated + ended
    assert value('gptmill_first_token_seconds_count{model="text"}') == 6
    steps, rows = (value(f'gptmill_batch_size_{part}{{model="text"}}') for part in ("count", "sum"))
    assert rows == generated + ended - 6 and rows / steps > 1  # first tokens come from prefills
    assert value('gptmill_queued{model="text"}') == value('gptmill_running{model="text"}') == 0


def test_models_are_opened_when_first_asked_and_once(start):
    engines = lambda: sum(t.name == "gptmill engine" for t in threading.enumerate())  # noqa: E731
    before = engines()
    with start() as running:
        assert running.service.opened() == []
        body = ENDLESS | {"options": {"num_predict": 1}, "stream": False}
        with ThreadPoolExecutor(4) as pool:
            ask = lambda _: HTTP.post(f"{running.address}/api/generate", json=body)  # noqa: E731
            assert {answer.status_code for answer in pool.map(ask, range(4))} == {200}
        assert [card.name for card, _ in running.service.opened()] == ["text"]
        assert engines() == before + 1


def test_a_damaged_model_fails_alone(models, tmp_path):
    for name in ("text", "text-int8", "broken"):
        folder = tmp_path / name
        folder.mkdir()
        for path in (models / "text").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken" / "model.onnx").write_bytes(b"nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.onnx").write_bytes(b"")
    service = Service(tmp_path, Limits(threads=1))
    assert [card.name for card in service.catalogue] == ["broken", "text", "text-int8"]
    assert service.card("text-int8:latest").precision == "INT8"
    assert "config.json does not exist" in next(iter(service.catalogue.skipped.values()))
    running = Running(service)
    try:
        body = ENDLESS | {"options": {"num_predict": 1}, "stream": False}
        broken = HTTP.post(f"{running.address}/api/generate", json=body | {"model": "broken"})
        assert broken.status_code == 500 and "has other bytes" in broken.json()["error"]
        assert HTTP.post(f"{running.address}/api/generate", json=body).status_code == 200
    finally:
        running.stop()


def test_stopping_drains(start, slow):
    """Who waits is refused at once, who runs has the time that was set, and is told then."""
    limits = {"max_tokens": 10**6, "max_batch": 1, "drain": 1.0}
    with start(**limits) as running, endless_chunks(running.address) as answer:
        lines = answer.iter_lines()
        next(lines)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(HTTP.post, f"{running.address}/api/generate", json=ENDLESS)
            eventually(lambda: live(running) == 2)
            began = time.monotonic()
            running._server.should_exit = True
            refused = waiting.result()
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert "shutting down" in refused.json()["error"]
        assert time.monotonic() - began < 0.9
        last = list(lines)[-1]
        assert "shutting down" in json.loads(last)["error"]
        assert 0.8 < time.monotonic() - began < 20


def test_stopping_waits_for_who_ends_in_time(start, slow):
    with start(max_tokens=25) as running, endless_chunks(running.address) as answer:
        lines = answer.iter_lines()
        next(lines)
        running._server.should_exit = True
        assert json.loads(list(lines)[-1])["done_reason"] == "length"


def test_nothing_to_serve(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Service(tmp_path / "absent", Limits())
    with pytest.raises(UserError, match="no model to serve"):
        Service(tmp_path, Limits())


def test_a_port_that_is_taken_is_named(running):
    port = int(running.address.rpartition(":")[2])
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        listen("127.0.0.1", port)


def test_what_the_command_line_refuses(models, monkeypatch):
    monkeypatch.delenv("GPTMILL_API_KEY", raising=False)
    for name, value in [
        ("--max-batch", "0"), ("--timeout", "nan"), ("--timeout", "inf"), ("--max-queue", "-1"),
        ("--port", "99999"), ("--port", "-1"), ("--threads", "0"), ("--drain", "-1"),
        ("--api-key-file", "/nowhere"), ("--allowed-hosts", "https://a.example"),
        ("--allowed-origins", "a.example"), ("--host", "0.0.0.0"),
    ]:  # fmt: skip
        with pytest.raises(SystemExit, match=f"{name}[: ]"):
            main(["serve", "--models", str(models), "--threads", "1", name, value])


CLEAN = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
from gptmill.cli import main
main(["serve", "--models", {models!r}, "--port", "0", "--threads", "1"])
"""


def test_the_command_serves_without_pytorch(models):
    forbidden = ["torch", "transformers", "pandas", "onnx", "onnxscript", "tokenizers", "mlflow"]
    forbidden += ["safetensors", "dvc", "sklearn", "ruamel", "yaml", "huggingface_hub", "requests"]
    script = CLEAN.format(forbidden=forbidden, models=str(models))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+", line)[0]
        assert "classifier, instructions, long, text" in line
        client = ollama.Client(address)
        options = {"temperature": 0, "num_predict": 12}
        answer = client.generate("text", "the cat", options=options, format="json")
        assert answer.response.startswith("{")
        answer = client.generate("text", "the cat", options=options)
        assert answer.response == alone(models, "text", "the cat").text
        assert HTTP.post(f"{address}/classify", json={"text": "a"}).status_code == 200
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 143, process.stderr.read()


def test_without_its_extra_the_command_says_what_to_install(models):
    script = CLEAN.format(forbidden=["fastapi"], models=str(models))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "fastapi is missing: pip install 'gptmill[serve]'" in ended.stderr
