"""npm's clients, in Node: the cells of clients.mjs."""

import pytest

from tests.clients.conftest import cell, own_answer

CLIENTS = {
    "ollama": ("ollama, npm", "ollama"),
    "openai": ("openai, npm", "openai"),
    "ai-sdk": ("AI SDK, OpenAI-compatible", "@ai-sdk/openai-compatible"),
    "ai-sdk-openai": ("AI SDK, OpenAI", "@ai-sdk/openai"),
    "ai-sdk-ollama": ("AI SDK, Ollama", "ollama-ai-provider-v2"),
}
CELLS = {
    "ollama": "models chat stream completion structured embeddings error",
    "openai": "models chat stream completion structured embeddings responses error",
    "ai-sdk": "chat stream structured embeddings",
    "ai-sdk-openai": "responses stream structured embeddings",
    "ai-sdk-ollama": "chat stream structured embeddings",
}


def right(feature: str, seen: dict) -> bool:
    """Whether a cell saw what it should."""
    if feature in ("chat", "responses"):
        return seen["text"] == own_answer()
    if feature == "stream":
        return "".join(seen["pieces"]) == own_answer() and len([p for p in seen["pieces"] if p]) > 1
    if feature == "models":
        return {"instructions", "instructions:latest"} & set(seen["names"]) != set()
    if feature == "structured":
        return isinstance(seen["value"]["name"], str) and isinstance(seen["value"]["age"], int)
    if feature == "embeddings":
        return [len(vector) for vector in seen["vectors"]] == [128, 128]
    return bool(seen["text"]) if feature == "completion" else seen["status"] == 404


@pytest.mark.parametrize(
    ("client", "feature"),
    [
        pytest.param(client, feature, marks=cell(*CLIENTS[client], feature, node=True))
        for client, features in CELLS.items()
        for feature in features.split()
    ],
)
def test_npm(client, feature, node):
    seen = node(client, feature)
    assert right(feature, seen), seen
