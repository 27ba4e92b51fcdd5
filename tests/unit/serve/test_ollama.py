"""Ollama's protocol, through its own client."""

import ollama
import pytest

from gptmill.prompt import format_prompt
from tests.unit.serve.conftest import alone

GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture
def client(running) -> ollama.Client:
    return ollama.Client(running.address)


@pytest.mark.parametrize("stream", [False, True])
def test_generate(stream, client, models):
    expected = alone(models, "text", "the cat")
    answer = client.generate("text", "the cat", options=GREEDY, stream=stream)
    parts = list(answer) if stream else [answer]
    last = parts[-1]
    assert "".join(part.response for part in parts) == expected.text
    assert len(parts) > 2 or not stream
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert last.done_reason == "length"
    assert last.eval_count == 12
    assert last.prompt_eval_count == len(expected.prompt_ids)
    assert last.context == expected.prompt_ids + expected.ids
    assert last.total_duration >= last.prompt_eval_duration + last.eval_duration > 0


@pytest.mark.parametrize("stream", [False, True])
def test_chat(stream, client, models):
    prompt = format_prompt({"instruction": "on", "input": ""}, "phi3")
    expected = alone(models, "instructions", prompt)
    messages = [{"role": "user", "content": "on"}]
    answer = client.chat("instructions", messages, options=GREEDY, stream=stream)
    parts = list(answer) if stream else [answer]
    assert "".join(part.message.content for part in parts) == expected.text
    assert {part.message.role for part in parts} == {"assistant"}
    assert parts[-1].done and parts[-1].prompt_eval_count == len(expected.prompt_ids)
