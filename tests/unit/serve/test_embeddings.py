"""Embeddings through the official clients, against transformers' own hidden states."""

import numpy as np
import ollama
import openai
import pytest
import torch
from transformers import GPT2Model

from tests.unit.serve.conftest import CONTEXT, HTTP, generator

TEXTS = ["the cat", "on the hill the cat sat", "a"]


@pytest.fixture(scope="module")
def expected(models) -> np.ndarray:
    """The mean of the last hidden states of each text alone, of length 1."""
    model = GPT2Model.from_pretrained(models.parent / "text").eval()
    tokenizer = generator(models / "text").tokenizer
    with torch.no_grad():
        states = [model(torch.tensor([tokenizer.encode(text)])) for text in TEXTS]
    means = np.array([state.last_hidden_state[0].mean(0).numpy() for state in states])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_openais_client(running, models, expected):
    client = openai.OpenAI(base_url=f"{running.address}/v1", api_key="none", max_retries=0)
    ids = [generator(models / "text").tokenizer.encode(text) for text in TEXTS]
    for given in (TEXTS, ids):
        for more in ({}, {"encoding_format": "float"}):  # it asks for base64 by itself
            answer = client.embeddings.create(model="text", input=given, **more)
            found = np.array([one.embedding for one in answer.data])
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    one = client.embeddings.create(model="text", input=TEXTS[1]).data
    np.testing.assert_allclose(one[0].embedding, expected[1], atol=1e-5)


def test_ollamas_client(running, expected):
    client = ollama.Client(running.address)
    answer = client.embed("text", TEXTS)
    np.testing.assert_allclose(answer.embeddings, expected, atol=1e-5)
    older = client.embeddings("text", TEXTS[0])
    np.testing.assert_allclose(older.embedding, expected[0], atol=1e-5)
    assert list(client.embed("text", []).embeddings) == []


def test_what_is_too_long(running):
    client = openai.OpenAI(base_url=f"{running.address}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model="text", input=["a", [5] * (CONTEXT + 1)])
    assert raised.value.code == "context_length_exceeded" and "input 1 has" in str(raised.value)
    ours = ollama.Client(running.address)
    long = "the cat " * CONTEXT
    assert ours.embed("text", long).prompt_eval_count == CONTEXT
    with pytest.raises(ollama.ResponseError, match="maximum context length"):
        ours.embed("text", long, truncate=False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": ""}, "input 0 is empty"),
        ({"input": []}, "input"),
        ({"input": ["a", []]}, "input 1 is empty"),
        ({"input": [10**6]}, "token ids that this model has not"),
        ({"input": "a", "dimensions": 7}, "dimensions must be 32"),
        ({"input": "a", "model": "classifier"}, "is a classifier"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
    ids=str,
)
def test_what_cannot_be_embedded(body, message, running):
    answer = HTTP.post(f"{running.address}/v1/embeddings", json={"model": "text", **body})
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]
