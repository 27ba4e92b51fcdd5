"""No message gives a secret away."""

import subprocess
import sys

import pytest

from gptmill.errors import UserError, first_line, without_credentials


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTED1")
    monkeypatch.setenv("OPENAI_API_KEY", "PLANTED2")
    monkeypatch.setenv("GPTMILL_MIRROR", "https://me:PLANTED/3%21@mirror.example/files")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "PLANTED4")
    monkeypatch.setenv("SHORT_KEY", "a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:PLANTED@host:80/a: 401", "http://host:80/a: 401"),
        ("at 'https://PLANTED@host'", "at 'https://host'"),
        ("postgresql+psycopg2://me:PLANT@ED@host/db", "postgresql+psycopg2://host/db"),
        ("me:PLANTED@127.0.0.1:11434 is silent", "127.0.0.1:11434 is silent"),
        ("see http://a/b?x=1&api_key=PLANTED&y=2", "see http://a/b?x=1&api_key=***&y=2"),
        ("https://s3/x?X-Amz-Signature=PLANTED", "https://s3/x?X-Amz-Signature=***"),
        ("Authorization: Bearer PLANTED.abc", "Authorization: Bearer ***"),
        ("Basic bWU6UExBTlRFRA==", "Basic ***"),
        ("the token hf_PLANTED1 was refused", "the token *** was refused"),
        ("PLANTED2", "***"),
        ("login PLANTED/3! and PLANTED/3%21", "login *** and ***"),
        ("(PLANTED4)", "(***)"),
    ],
)
def test_secrets_are_struck_out(text: str, expected: str) -> None:
    assert without_credentials(text) == expected
    assert str(UserError(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "models:/gptmill-classifier@champion",
        "http://127.0.0.1:5000/#/experiments/1?page=2",
        "https://raw.githubusercontent.com/a/b@c/d.txt",
        "git@github.com:owner/name.git",
        "at 12:30 write to someone@example.org",
        "a basic fault; the bearer of news",
        "sqlite:////home/me/mlflow.db",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert without_credentials(text) == text


def test_tracebacks_show_none() -> None:
    script = (
        "from gptmill.errors import hide_credentials_in_tracebacks as hide\nhide()\n"
        "def call(address): raise OSError(f'no answer from {address}')\n"
        "call('http://me:' + 'PLAN' + 'TED@host')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("OSError: no answer from http://host\n")
    assert "Traceback" in done.stderr and "PLANTED" not in done.stderr


def test_a_library_s_error_that_says_nothing_is_named() -> None:
    assert first_line(ValueError("")) == "ValueError"
    assert first_line(ValueError("one\ntwo")) == "one"
