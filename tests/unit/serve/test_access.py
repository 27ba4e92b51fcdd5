"""Who is let in: keys, names, pages, and a proxy in front."""

import socket

import ollama
import openai
import pytest

from gptmill.errors import UserError
from gptmill.serve.access import Access, check_reach, is_loopback, read_keys
from tests.unit.serve.conftest import HTTP

KEY, OTHER = "k" * 32, "o" * 32
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def locked(start):
    with start(Access("127.0.0.1", keys=(OTHER, KEY))) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/tags"), ("POST", "/api/chat"), ("POST", "/api/generate"), ("GET", "/api/ps"),
        ("POST", "/api/show"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"), ("POST", "/classify"), ("GET", "/metrics"),
        ("GET", "/openapi.json"), ("GET", "/nowhere"),
    ],
)  # fmt: skip
def test_without_its_key_nothing_is_served(method, path, locked):
    for given in (None, f"Bearer {KEY}x", f"Basic {KEY}", "Bearer", KEY, b"Bearer \xff\xfe"):
        headers = {} if given is None else {"authorization": given}
        answer = HTTP.request(method, locked.address + path, headers=headers, content=b"{}")
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert HTTP.request(method, locked.address + path, headers=BEARER).status_code != 401


def test_the_page_and_health_are_open(locked):
    for path in ("/", "/script.js", "/style.css", "/health", "/ready"):
        assert HTTP.get(locked.address + path).status_code == 200
    assert HTTP.get(f"{locked.address}/health").json() == {"status": "ok"}
    assert "text" in HTTP.get(f"{locked.address}/health", headers=BEARER).json()["models"]


def test_the_official_clients_bear_their_key(locked, monkeypatch):
    openai_client = openai.OpenAI(base_url=f"{locked.address}/v1", api_key=KEY)
    assert openai_client.models.list().data
    with pytest.raises(openai.AuthenticationError, match="API key"):
        openai.OpenAI(base_url=f"{locked.address}/v1", api_key="wrong").models.list()
    monkeypatch.setenv("OLLAMA_API_KEY", KEY)
    assert ollama.Client(locked.address).list().models
    monkeypatch.delenv("OLLAMA_API_KEY")
    with pytest.raises(ollama.ResponseError, match="API key"):
        ollama.Client(locked.address).list()


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("GPTMILL_API_KEY", raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv("GPTMILL_API_KEY", KEY)
    assert read_keys(None) == (KEY,)
    file = tmp_path / "keys"
    file.write_text(f"{OTHER}\n\n {KEY} \n")
    assert read_keys(file) == (OTHER, KEY)
    for text, message in [("", "holds no key"), ("short", "at least 16"), ("é" * 20, "ASCII")]:
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_keys(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "absent")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_beyond_loopback_a_key_is_needed(host):
    with pytest.raises(UserError, match="GPTMILL_API_KEY"):
        check_reach(Access(host))
    check_reach(Access(host, keys=(KEY,)))


def test_loopback_needs_no_key():
    for host in ("127.0.0.1", "127.1.2.3", "localhost"):
        assert is_loopback(host)
        check_reach(Access(host))
    assert not is_loopback("no.such.name.invalid")


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost:1", True), ("my.localhost", True), ("printer.local:80", True),
        ("host.docker.internal:11435", True), ("192.0.2.7", True), ("[::1]:80", True),
        ("models.example.com", True), ("a.apps.example.com:8080", True), ("LOCALHOST", True),
        ("apps.example.com", False), ("example.com", False), ("localhost.example.com", False),
        ("", False), ("[", False), ("evil.example", False),
    ],
)  # fmt: skip
def test_the_names_it_answers_to(host, answered):
    allowed = ("models.example.com", "*.apps.example.com")
    assert Access("127.0.0.1", allowed_hosts=allowed).answers_to(host) is answered


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://127.0.0.1:11435", "127.0.0.1:11435", True),
        ("http://localhost:3000", "127.0.0.1:11435", True),
        ("https://localhost", "127.0.0.1:11435", True),
        ("http://[::1]:5173", "127.0.0.1:11435", True),
        ("https://models.example.com", "models.example.com", True),
        ("https://models.example.com", "models.example.com:443", True),
        ("https://models.example.com:8443", "models.example.com", False),
        ("https://app.example.org", "127.0.0.1", True),
        ("https://a.lab.example.org", "127.0.0.1", True),
        ("vscode-webview://abc", "127.0.0.1", True),
        ("https://evil.example", "127.0.0.1", False),
        ("https://localhost.evil.example", "127.0.0.1", False),
        ("http://192.0.2.1", "127.0.0.1", False),
        ("null", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("http://[", "127.0.0.1", False),
        ("javascript://localhost", "127.0.0.1", False),
    ],
)
def test_the_pages_it_lets_in(origin, host, allowed):
    origins = ("https://app.example.org", "https://*.lab.example.org")
    assert Access("127.0.0.1", allowed_origins=origins).lets_in(origin, host) is allowed


def test_a_page_on_another_local_port_can_ask(running):
    origin = {"origin": "http://localhost:3000"}
    wanted = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type, authorization",
    }
    leave = HTTP.options(f"{running.address}/api/chat", headers={**origin, **wanted})
    assert leave.status_code == 204
    assert "POST" in leave.headers["access-control-allow-methods"]
    assert "authorization" in leave.headers["access-control-allow-headers"]
    answer = HTTP.get(f"{running.address}/api/tags", headers=origin)
    assert answer.headers["access-control-allow-origin"] == origin["origin"]
    assert "Origin" in answer.headers["vary"]
    refused = HTTP.post(f"{running.address}/api/chat", headers=origin, json={})
    assert refused.status_code == 400 and "access-control-allow-origin" in refused.headers
    evil = {"origin": "https://evil.example"}
    assert (
        HTTP.options(f"{running.address}/api/chat", headers={**evil, **wanted}).status_code == 403
    )


def test_a_locked_server_gives_leave_without_a_key(locked):
    headers = {"origin": "http://localhost:3000", "access-control-request-method": "GET"}
    assert HTTP.options(f"{locked.address}/api/tags", headers=headers).status_code == 204


FORWARDED = {"x-forwarded-host": "models.example.com", "x-forwarded-for": "6.6.6.6, 192.0.2.9"}


def test_a_trusted_proxy_says_who_asks_for_what(start):
    page = {"origin": "https://models.example.com", **FORWARDED}
    names = {"allowed_hosts": ("models.example.com",)}
    for trusted, status in [(("127.0.0.1",), 200), ((), 403)]:
        access = Access("127.0.0.1", trusted_proxies=trusted, **names)
        with start(access) as running:
            answer = HTTP.get(f"{running.address}/api/tags", headers=page)
            assert answer.status_code == status


def raw(address: str, request: bytes) -> bytes:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_http_1_0_needs_no_host(running):
    assert b" 200 OK" in raw(running.address, b"GET /health HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
    forged = b"GET /health HTTP/1.0\r\nOrigin: http://evil.example\r\n\r\n"
    assert b" 403 " in raw(running.address, forged).split(b"\r\n")[0]
    forged = b"GET /health HTTP/1.0\r\nHost: evil.example\r\n\r\n"
    assert b" 403 " in raw(running.address, forged).split(b"\r\n")[0]
