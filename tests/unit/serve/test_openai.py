"""OpenAI's protocol, through its own client."""

import json

import numpy as np
import openai
import pytest

from gptmill.prompt import format_prompt
from tests.unit.serve.conftest import HTTP, alone, generator

TWELVE = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.address}/v1", api_key="none", max_retries=0)


def expected_chat(models):
    return alone(models, "instructions", format_prompt({"instruction": "on", "input": ""}, "phi3"))


ON = [{"role": "user", "content": "on"}]


def test_a_chat(client, models):
    answer = client.chat.completions.create(model="instructions", messages=ON, **TWELVE)
    expected = expected_chat(models)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    counts = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert counts == (len(expected.prompt_ids), 12)
    assert answer.usage.total_tokens == sum(counts)


def test_a_streamed_chat_with_usage(client, models):
    chunks = list(
        client.chat.completions.create(
            model="instructions",
            messages=ON,
            stream=True,
            stream_options={"include_usage": True},
            **TWELVE,
        )
    )
    *pieces, end, usage = chunks
    expected = expected_chat(models)
    assert "".join(chunk.choices[0].delta.content for chunk in pieces) == expected.text
    assert len(pieces) > 2
    assert [chunk.choices[0].delta.role for chunk in pieces] == ["assistant"] + [None] * (
        len(pieces) - 1
    )
    assert end.choices[0].finish_reason == "length" and end.choices[0].delta.content is None
    assert usage.choices == [] and usage.usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_usage_so_far_in_every_chunk(client):
    """vLLM's option, which guidellm sets."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = client.chat.completions.create(
        model="instructions", messages=ON, stream=True, stream_options=options, **TWELVE
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] < 3 and counts[-2:] == [12, 12]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
def test_a_completion(stream, as_ids, client, models):
    expected = alone(models, "text", "the cat")
    prompt = expected.prompt_ids if as_ids else "the cat"
    answer = client.completions.create(model="text", prompt=prompt, stream=stream, **TWELVE)
    parts = list(answer) if stream else [answer]
    assert "".join(part.choices[0].text for part in parts) == expected.text
    assert parts[-1].choices[0].finish_reason == "length"


def test_messages_in_parts_and_the_newer_names(client, models):
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "o"}, {"type": "text", "text": "n"}],
    }
    answer = client.chat.completions.create(
        model="instructions", messages=[message], temperature=0, max_completion_tokens=12
    )
    assert answer.choices[0].message.content == expected_chat(models).text


def test_stop_and_seed(client, models):
    whole = alone(models, "text", "the cat").text
    stop = whole[3:6]
    answer = client.completions.create(model="text", prompt="the cat", stop=stop, **TWELVE)
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    ask = {"model": "text", "prompt": "the cat", "max_tokens": 12, "temperature": 3}
    texts = [client.completions.create(**ask, seed=seed).choices[0].text for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] == alone(models, "text", "the cat", temperature=3, seed=5).text
    unseeded = {client.completions.create(**ask).choices[0].text for _ in range(3)}
    assert len(unseeded) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_chat(stream, client):
    answer = client.chat.completions.create(
        model="instructions", messages=ON, logprobs=True, top_logprobs=3, stream=stream, **TWELVE
    )
    parts = list(answer) if stream else [answer]
    scored = [
        one
        for part in parts
        if part.choices[0].logprobs
        for one in part.choices[0].logprobs.content
    ]
    assert len(scored) == 12
    for one in scored:
        tops = [top.logprob for top in one.top_logprobs]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert one.top_logprobs[0].token == one.token  # greedy
        assert bytes(one.bytes).decode(errors="replace") == one.token


def test_log_probabilities_of_a_completion(client):
    answer = client.completions.create(model="text", prompt="the cat", logprobs=2, **TWELVE)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith(logprobs.tokens[0]) and len(logprobs.tokens) == 12
    assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]
    assert logprobs.token_logprobs == [max(top.values()) for top in logprobs.top_logprobs]


def test_a_response_format(client):
    schema = {
        "type": "object",
        "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 100}},
        "required": ["score"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    answer = client.chat.completions.create(
        model="instructions", messages=ON, response_format=wanted, max_tokens=40, temperature=1
    )
    value = json.loads(answer.choices[0].message.content)
    assert list(value) == ["score"] and 0 <= value["score"] <= 100
    assert answer.choices[0].finish_reason == "stop"


def test_models(client):
    assert [model.id for model in client.models.list()] == ["instructions", "long", "text"]
    assert client.models.retrieve("text").id == "text"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "absent"}, openai.NotFoundError, "model 'absent' not found"),
        ({"model": "text"}, openai.BadRequestError, "was not trained to chat"),
        ({"model": "classifier"}, openai.BadRequestError, "is a classifier"),
        ({"tools": [{}]}, openai.BadRequestError, "tools is not supported here"),
        ({"presence_penalty": 3}, openai.BadRequestError, "presence_penalty: Input should be less"),
        ({"logit_bias": {"9999": 1}}, openai.BadRequestError, "token ids that this model has not"),
        ({"logit_bias": {"1": 101}}, openai.BadRequestError, "logit_bias.1: Input should be less"),
        ({"temperature": -1}, openai.BadRequestError, "temperature is -1"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        (
            {"extra_body": {"temprature": 1}},
            openai.BadRequestError,
            "unknown option temprature: did you mean temperature",
        ),
    ],
    ids=str,
)
def test_what_is_refused_says_why_in_openais_shape(changes, error, message, client):
    ask = {"model": "instructions", "messages": ON, "max_tokens": 4, **changes}
    with pytest.raises(error, match=message) as raised:
        client.chat.completions.create(**ask)
    assert raised.value.body["type"] == "invalid_request_error"


def test_a_bias_forbids_and_forces(client, models):
    ask = {"model": "text", "prompt": "the cat", **TWELVE}
    first = alone(models, "text", "the cat").ids[0]
    without = client.completions.create(logit_bias={str(first): -100}, logprobs=0, **ask)
    assert without.choices[0].logprobs.tokens[0] != alone(models, "text", "the cat").text[:1]
    forced = client.completions.create(logit_bias={"65": 100}, **ask)
    (letter,) = set(forced.choices[0].text)
    assert forced.choices[0].text == letter * 12


def test_penalties_are_openais_formula(client, models):
    """Greedy, against the same loop by hand over the decoder's own logits."""
    text = generator(models / "text")
    prompt = text.tokenizer.encode("the cat")
    ids: list[int] = []
    for _ in range(12):
        window = np.array([[*prompt, *ids]])
        logits = text.decoder.prefill(window, np.ones_like(window))[0].copy()
        for id in set(ids):
            logits[id] -= ids.count(id) * 1.5 + 0.7
        ids.append(int(logits.argmax()))
    answer = client.completions.create(
        model="text", prompt="the cat", frequency_penalty=1.5, presence_penalty=0.7, **TWELVE
    )
    assert answer.choices[0].text == text.tokenizer.decode(ids)
    assert answer.choices[0].text != alone(models, "text", "the cat").text


def test_an_answer_ends_no_sooner_than_it_may(client, models):
    """The bias ends it as soon as it may."""
    end = generator(models / "text").tokenizer.end_of_text
    ask = {"model": "text", "prompt": "the", "max_tokens": 40, "logit_bias": {str(end): 100}}
    for more, count in [({}, 0), ({"min_tokens": 20}, 20), ({"ignore_eos": True}, 40)]:
        answer = client.completions.create(**ask, extra_body=more)
        assert answer.usage.completion_tokens == count
    with pytest.raises(openai.BadRequestError, match="ends where its JSON does"):
        client.chat.completions.create(
            model="instructions", messages=ON, response_format={"type": "json_object"},
            extra_body={"ignore_eos": True},
        )  # fmt: skip


def test_what_changes_nothing_is_taken(client):
    answer = client.chat.completions.create(
        model="instructions", messages=ON, n=1, presence_penalty=0, user="me", max_tokens=2,
        extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.2},
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "length"


def test_a_path_that_is_not_there(running):
    answer = HTTP.get(f"{running.address}/v1/moderations")
    assert answer.status_code == 404 and "moderations" in answer.json()["error"]["message"]
