"""What an operator sees: request ids, lines of a log, spans, a dashboard; a real process that stops
when it is told."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.serve.conftest import HTTP

DASHBOARD = Path("deploy/grafana.json")


def test_a_request_keeps_its_id(running):
    def asked(**headers: str) -> str:
        return HTTP.get(f"{running.address}/api/tags", headers=headers).headers["x-request-id"]

    assert asked(**{"X-Request-Id": "abc-1:2"}) == "abc-1:2"
    made = [asked() for _ in range(2)]
    assert len(set(made)) == 2
    for odd in ("", "a b", "x" * 129, 'a"b'):
        assert re.fullmatch("[0-9a-f]{24}", asked(**{"X-Request-Id": odd}))
    refused = HTTP.get(f"{running.address}/nowhere", headers={"X-Request-Id": "r1"})
    assert refused.status_code == 404 and refused.headers["x-request-id"] == "r1"
    foreign = {"Origin": "https://example.com", "X-Request-Id": "r2"}
    refused = HTTP.get(f"{running.address}/api/tags", headers=foreign)
    assert refused.status_code == 403 and refused.headers["x-request-id"] == "r2"


@pytest.fixture(scope="module")
def ran(models, tmp_path_factory) -> tuple[list[dict], list[dict]]:
    """The log and the spans of a process that answered three requests and was told to stop."""
    command = [sys.executable, "-m", "gptmill.cli", "serve", "--models", str(models), "--port", "0"]
    log = tmp_path_factory.mktemp("log") / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--log-level", "info", "--log-format", "json", "--threads", "1"],
            env={**os.environ, "OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "ours"},
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    address = process.stdout.readline().split()[0]
    body = {"model": "text", "prompt": "the cat", "max_tokens": 5, "temperature": 0}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-Request-Id": "mine", "traceparent": trace}
    assert HTTP.post(f"{address}/v1/completions", json=body, headers=headers).is_success
    HTTP.post(f"{address}/v1/completions", json={**body, "stream": True})
    HTTP.post(f"{address}/v1/completions", json={**body, "model": "nobody"})
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[0]
    spans, decoder, at = [], json.JSONDecoder(), 0
    while (at := rest.find("{", at)) >= 0:
        span, at = decoder.raw_decode(rest, at)
        spans.append(span)
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines], spans


def test_a_line_of_json_for_each_request(ran):
    lines = [line for line in ran[0] if line["logger"] == "gptmill.access"]
    assert [line["status"] for line in lines] == [200, 200, 404]
    first = lines[0]
    assert first["request_id"] == "mine" and len({line["request_id"] for line in lines}) == 3
    assert (first["method"], first["path"]) == ("POST", "/v1/completions")
    assert first["client"] == "127.0.0.1" and 0 < first["seconds"] < 60
    assert first["level"] == "info" and first["time"].endswith("+00:00")


def test_a_span_for_each_request(ran):
    first, streamed, refused = ran[1]
    assert first["name"] == "POST /v1/completions"
    assert first["context"]["trace_id"] == "0x0af7651916cd43dd8448eb211c80319c"
    assert first["parent_id"] == "0xb7ad6b7169203331"
    assert first["resource"]["attributes"]["service.name"] == "ours"
    for span in (first, streamed):
        attributes = span["attributes"]
        assert attributes["http.response.status_code"] == 200
        assert attributes["gen_ai.request.model"] == "text"
        assert attributes["gen_ai.usage.output_tokens"] == 5
    assert first["attributes"]["gptmill.request_id"] == "mine"
    assert refused["attributes"]["http.response.status_code"] == 404


def test_an_exporter_that_is_missing_is_named(models):
    command = [sys.executable, "-m", "gptmill.cli", "serve", "--models", str(models), "--port", "0"]
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "zipkin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no exporter zipkin" in done.stderr


def test_the_dashboard_asks_for_what_is_there(running):
    """Every series of every panel is one that `/metrics` has, with the labels it is taken by."""
    body = {"model": "text", "prompt": "a", "max_tokens": 2}
    HTTP.post(f"{running.address}/v1/completions", json=body)
    series: dict[str, set[str]] = {}
    for line in HTTP.get(f"{running.address}/metrics").text.splitlines():
        if found := re.match(r"(gptmill_\w+)\{(.*)\}", line):
            series.setdefault(found[1], set()).update(re.findall(r"(\w+)=", found[2]))
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 5
    for panel in panels:
        for target in panel["targets"]:
            names = re.findall(r"gptmill_\w+", target["expr"])
            labels = {name for group in re.findall(r"by \((.*?)\)", target["expr"])
                      for name in group.split(", ")}  # fmt: skip
            assert names and set(names) <= series.keys()
            assert labels <= series[names[0]]
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= series[names[0]]
    shown = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    measured = {re.sub("_(bucket|sum|count)$", "", name) for name in series}
    assert {name for name in measured if name not in shown} == set(), "no panel shows it"
