"""The judge's model behind any server with OpenAI's `/v1/chat/completions`.

Such are llama.cpp's and llama-cpp-python's, vLLM's, Ollama's own, and ours. The protocol has no
model digest and no window: replies are kept by address and name, so empty the state folder when
another model takes the name, and the server must refuse prompts that are too long.

OpenAI's form of a schema (`json_schema`) goes first. A server that refuses it is asked in
llama-cpp-python's form, the schema beside `json_object`; both hold the reply to the same schema.
"""

from collections.abc import Callable
from typing import Any

import httpx

from gptmill.errors import UserError
from gptmill.judge.ollama import PROBE_SECONDS, is_loopback
from gptmill.judge.reply import Prompt, Reply, TransportFault

SchemaForm = Callable[[dict[str, Any]], dict[str, Any]]
UNKNOWN_FORM = (400, 422)  # how servers refuse a `response_format` that they do not know


class OpenAIServer:
    """A server that is reachable and lists the model.

    Args:
        host: address with scheme, with or without `/v1`.
        model: a name that `/v1/models` lists.
        key: bearer token, or ''.
        timeout: seconds for one request.
        reply_tokens: max_tokens.

    Raises:
        UserError: nothing answers within two seconds, something else answers, the key is
            refused, or the model is not listed.
    """

    version: str | None = None

    def __init__(self, host: str, model: str, *, key: str, timeout: float, reply_tokens: int):
        self._address = host.rstrip("/").removesuffix("/v1")
        self._model, self._timeout = model, timeout
        self._client = httpx.Client(
            base_url=f"{self._address}/v1/",
            timeout=timeout,
            trust_env=not is_loopback(self._address),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        self._options = {"temperature": 0, "max_tokens": reply_tokens}
        self._schema_form = _openai_schema
        names = self._models()
        if model not in names:
            there = ", ".join(names) or "none"
            raise UserError(
                f"{self._address} has no model {model}: set judge.model; it has {there}"
            )
        self.identity = {
            "protocol": "openai",
            "address": self._address,
            "model": model,
            "digest": None,
            "options": self._options,
        }

    def ask(self, prompt: Prompt, seed: int) -> Reply:
        """One chat completion; see `Server.ask`."""
        form = self._schema_form
        answer = self._post(prompt, seed, form)
        if prompt.schema and form is _openai_schema and answer.status_code in UNKNOWN_FORM:
            second = self._post(prompt, seed, _llama_cpp_schema)
            if second.status_code == 200:
                answer, self._schema_form = second, _llama_cpp_schema
        self._check_status(answer)
        return _reply(answer)

    def _post(self, prompt: Prompt, seed: int, schema_form: SchemaForm) -> httpx.Response:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": prompt.messages(),
            "seed": seed,
            **self._options,
        }
        if prompt.schema:
            body["response_format"] = schema_form(prompt.schema)
        try:
            return self._client.post("chat/completions", json=body)
        except httpx.TimeoutException:
            raise TransportFault("timeout", f"no reply within {self._timeout:g} s") from None
        except httpx.ConnectError as error:
            raise TransportFault("unreachable", f"{self._address}: {error}") from None
        except httpx.HTTPError as error:
            raise TransportFault("connection lost", str(error)) from None

    def _check_status(self, answer: httpx.Response) -> None:
        status = answer.status_code
        if status == 200:
            return
        detail = f"{status}: {answer.text[:200]}"
        if status in (401, 403):
            raise UserError(f"{self._address} refuses us ({detail}): check OPENAI_API_KEY")
        if status == 404:
            raise UserError(f"{self._address} no longer has model {self._model} ({detail})")
        if 400 <= status < 500 and status not in (408, 429):
            raise TransportFault("request refused", detail, retry=False)
        raise TransportFault("server error", detail)

    def _models(self) -> list[str]:
        try:
            answer = self._client.get("models", timeout=PROBE_SECONDS)
        except (httpx.ConnectError, httpx.TimeoutException) as error:
            raise UserError(
                f"no server at {self._address} ({error}): start it, or set judge.host"
            ) from None
        except httpx.HTTPError as error:
            raise UserError(f"{self._address} does not speak HTTP as expected: {error}") from None
        if answer.status_code in (401, 403):
            raise UserError(f"{self._address} wants a key: set OPENAI_API_KEY")
        try:
            return [model["id"] for model in answer.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._address}/v1/models does not answer as OpenAI's does: {error}"
            ) from None


def _openai_schema(schema: dict[str, Any]) -> dict[str, Any]:
    named = {"name": "verdict", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": named}


def _llama_cpp_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_object", "schema": schema}


def _reply(answer: httpx.Response) -> Reply:
    try:
        value = answer.json()
        choice = value["choices"][0]
        text, reason = choice["message"].get("content") or "", choice.get("finish_reason")
        tokens = (value.get("usage") or {}).get("prompt_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise TransportFault("malformed protocol", f"{error!r} in {answer.text[:80]!r}") from None
    return Reply(text, reason != "length", tokens)
