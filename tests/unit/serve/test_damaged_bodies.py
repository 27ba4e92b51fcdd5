"""Bodies of requests with anything in any place: answered, or refused by a documented status."""

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.test_readers import EXAMPLES
from tests.support.damage import damaged_json
from tests.unit.serve.conftest import HTTP, Running

MESSAGES = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Say it."}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
CHOICES = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "max_tokens": 3, "stop": ["."]}
BODIES = {
    "/v1/chat/completions": {"model": "instructions", "messages": MESSAGES, **CHOICES},
    "/v1/completions": {"model": "text", "prompt": "the", "logprobs": 1, "n": 1, **CHOICES},
    "/v1/responses": {"model": "instructions", "input": "Say it.", "max_output_tokens": 3},
    "/v1/embeddings": {"model": "text", "input": ["the", "fox"]},
    "/api/chat": {
        "model": "instructions", "messages": MESSAGES, "stream": False, "format": SCHEMA,
        "options": {"num_predict": 3, "temperature": 0.5, "stop": ["."]},
    },
    "/api/generate": {"model": "text", "prompt": "the", "stream": False, "raw": True},
    "/api/embed": {"model": "text", "input": ["the"]},
    "/api/show": {"model": "text"},
    "/classify": {"model": "classifier", "texts": ["the fox"]},
    "/tokenize": {"model": "text", "prompt": "the fox"},
    "/detokenize": {"model": "text", "tokens": [1, 2]},
}  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
def test_damaged_bodies(running: Running, path: str) -> None:
    def post(content: bytes) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        return HTTP.post(running.address + path, content=content, headers=headers, timeout=30)

    assert post(httpx.Request("POST", "http://x", json=BODIES[path]).content).status_code == 200

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(damaged_json(BODIES[path]))
    def run(content: bytes) -> None:
        response = post(content)
        assert response.status_code in (200, 400, 404, 422), response.text
        assert response.content

    run()
