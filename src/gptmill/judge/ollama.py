"""The judge's model in Ollama, through its official client.

The client lets httpx's errors through, so they are caught by name here.
"""

import ipaddress
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import ollama

from gptmill.errors import UserError, first_line
from gptmill.judge.reply import Prompt, Reply, ReplyFault, TransportFault

PROBE_SECONDS = 2.0
KEEP_ALIVE = "10m"
"""How long Ollama holds the model in memory after a request: longer than a pause of ours."""


class OllamaServer:
    """An Ollama server that is reachable and holds the model.

    Args:
        host: address; without a scheme http, and without a port 11434, as Ollama reads it.
        model: name, with or without a tag.
        context_length: num_ctx, tokens of prompt and reply; at most the model's own is used.
        timeout: seconds for one request, and between two pieces of a reply.
        reply_tokens: num_predict, tokens of the reply.

    Raises:
        UserError: nothing answers within two seconds, something else than Ollama answers, or the
            model is not there (the message has the `ollama pull` to run).
    """

    def __init__(
        self, host: str, model: str, *, context_length: int, timeout: float, reply_tokens: int
    ):
        self._address = address(host)
        self._model, self._timeout = model, timeout
        trust_env = not is_loopback(self._address)  # a proxy cannot reach our loopback
        self.version: str | None = _version(self._address, trust_env)
        self._client = ollama.Client(self._address, timeout=timeout, trust_env=trust_env)
        try:
            digest = self._digest()
            capabilities, longest = self._abilities()
        except (httpx.HTTPError, ollama.ResponseError, ConnectionError, ValueError) as error:
            raise UserError(f"{self._address} does not answer as Ollama does: {error}") from None
        self._think = False if "thinking" in capabilities else None
        self._options = {
            "temperature": 0,
            "num_ctx": min(context_length, longest or context_length),
            "num_predict": reply_tokens,
        }
        self.identity = {
            "protocol": "ollama",
            "model": model,
            "digest": digest,
            "options": self._options,
            "think": self._think,
        }

    def ask(self, prompt: Prompt, seed: int) -> Reply:
        """One streamed chat request; see `Server.ask`."""
        try:
            text, last = self._stream(prompt, seed)
        except httpx.TimeoutException:
            raise TransportFault("timeout", f"no reply within {self._timeout:g} s") from None
        except (httpx.ConnectError, ConnectionError) as error:
            raise TransportFault("unreachable", f"{self._address}: {error}") from None
        except ollama.ResponseError as error:
            raise self._status_fault(error) from None
        except httpx.HTTPError as error:
            raise TransportFault("connection lost", str(error)) from None
        except ValueError as error:
            raise TransportFault("malformed protocol", first_line(error)) from None
        if last is None or not last.done:
            raise TransportFault("cut stream", f"it ended after {len(text)} characters")
        self._check_window(prompt, last.prompt_eval_count)
        return Reply(text, last.done_reason != "length", last.prompt_eval_count)

    def _stream(self, prompt: Prompt, seed: int) -> tuple[str, ollama.ChatResponse | None]:
        """The text and the last piece. Streaming shows a cut and lets a slow reply be given up."""
        deadline = time.monotonic() + self._timeout
        text, last = "", None
        answer = self._client.chat(
            self._model,
            prompt.messages(),
            stream=True,
            think=self._think,
            format=prompt.schema,
            options={**self._options, "seed": seed},
            keep_alive=KEEP_ALIVE,
        )
        # Declared an iterator; it is a generator, and closing it closes the connection.
        pieces = cast(Generator[ollama.ChatResponse, None, None], answer)
        with closing(pieces):
            for last in pieces:
                text += last.message.content or ""
                if time.monotonic() > deadline and not last.done:
                    raise TransportFault("timeout", f"unfinished after {self._timeout:g} s")
        return text, last

    def _status_fault(self, error: ollama.ResponseError) -> Exception:
        status = error.status_code
        if status == 404:
            return UserError(_pull(self._model, self._address, f"{error.error}"))
        if status in (401, 403):
            return UserError(f"{self._address} refuses us ({error}): check OLLAMA_API_KEY")
        if 400 <= status < 500 and status not in (408, 429):
            return TransportFault("request refused", str(error), retry=False)
        return TransportFault("server error", str(error))

    def _check_window(self, prompt: Prompt, seen: int | None) -> None:
        """Ollama cuts a prompt that is too long, without a word, to the window or to half of it.

        A token is at least one byte, so most prompts fit for certain. Of the others the count of
        tokens tells: too many to leave room for the reply, exactly half the window, or far too
        few for the text (six bytes a token is more than any text of ours has).
        """
        window = self._options["num_ctx"]
        room = window - self._options["num_predict"]
        size = len((prompt.system + prompt.user).encode())
        if size + 256 <= room:  # 256 tokens are more than any chat template adds
            return
        if not seen or seen > room or abs(seen - window // 2) <= 8 or size > 6 * seen:
            raise ReplyFault(
                "prompt too long",
                f"{size} bytes, of which {seen or 'an unknown number of'} tokens were read, in a "
                f"window of {window}: raise judge.context_length",
                retry=False,
            )

    def _digest(self) -> str:
        models = {entry.model: entry.digest for entry in self._client.list().models}
        wanted = self._model if ":" in self._model.rsplit("/")[-1] else f"{self._model}:latest"
        if wanted not in models:
            there = ", ".join(sorted(name for name in models if name)) or "none"
            raise UserError(_pull(self._model, self._address, f"it has: {there}"))
        return models[wanted] or ""

    def _abilities(self) -> tuple[list[str], int | None]:
        """What the model can do, and its own context length where it is told."""
        shown = self._client.show(self._model)
        information: dict[str, Any] = dict(shown.modelinfo or {})
        architecture = information.get("general.architecture")
        return list(shown.capabilities or []), information.get(f"{architecture}.context_length")


def address(host: str) -> str:
    """An http address; a bare host gets Ollama's port."""
    if "//" in host:
        return host.rstrip("/")
    port = "" if urlsplit(f"http://{host}").port else ":11434"
    return f"http://{host.rstrip('/')}{port}"


def is_loopback(where: str) -> bool:
    """Whether the address is this machine's own."""
    name = urlsplit(where).hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # a name
        return False


def _version(where: str, trust_env: bool) -> str:
    """The server's version, asked for quickly: a machine without Ollama should not wait."""
    try:
        answer = httpx.get(f"{where}/api/version", timeout=PROBE_SECONDS, trust_env=trust_env)
        return str(answer.raise_for_status().json()["version"])
    except (httpx.ConnectError, httpx.TimeoutException) as error:
        raise UserError(
            f"no Ollama at {where} ({error}): start it with `ollama serve`, or set judge.host, "
            "or judge by reference metrics with judge.backend=reference"
        ) from None
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} answers, but not as Ollama does: {error}") from None


def _pull(model: str, where: str, detail: str) -> str:
    return (
        f"the judge's model {model} is not in Ollama at {where} ({detail}): `ollama pull {model}`"
    )
