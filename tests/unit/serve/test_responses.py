"""`/v1/responses` through OpenAI's own client, against the same question to the chat's path."""

import openai
import pytest
from pydantic import BaseModel

from tests.unit.serve.conftest import HTTP, alone

PROMPT = "<|user|>\non\n<|assistant|>\n"
TWELVE = {"model": "instructions", "temperature": 0, "max_output_tokens": 12}


@pytest.fixture(scope="module")
def client(running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.address}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(
    "asked",
    ["on", [{"role": "user", "content": [{"type": "input_text", "text": "on"}]}]],
    ids=str,
)
def test_a_response(asked, client, models):
    answer = client.responses.create(input=asked, **TWELVE)
    expected = alone(models, "instructions", PROMPT)
    assert answer.output_text == expected.text
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens) == (len(expected.prompt_ids), 12)


def test_a_streamed_response(client, models):
    events = list(client.responses.create(input="on", stream=True, **TWELVE))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == alone(models, "instructions", PROMPT).text and len(deltas) > 2
    assert [kind for kind in kinds if kind != "output_text.delta"] == [
        "created", "in_progress", "output_item.added", "content_part.added",
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert events[-1].response.output_text == "".join(deltas)
    with client.responses.stream(input="on", **TWELVE) as stream:  # the client adds up by itself
        shown = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert shown[-1] == "".join(deltas)


def test_earlier_turns_and_instructions(client):
    """As the chat's path renders the same conversation."""
    first = client.responses.create(input="on", **TWELVE)
    turns = [
        {"role": "user", "content": "on"},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"role": "user", "content": "hill"},
    ]
    answer = client.responses.create(input=turns, instructions="the cat", **TWELVE)
    chat = client.chat.completions.create(
        model="instructions", temperature=0, max_tokens=12,
        messages=[
            {"role": "system", "content": "the cat"},
            {"role": "user", "content": "on"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "hill"},
        ],
    )  # fmt: skip
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


class Verdict(BaseModel):
    reason: str
    good: bool


def test_a_schema_is_kept(client):
    for seed in range(3):
        answer = client.responses.parse(
            model="instructions", input="on", text_format=Verdict, extra_body={"seed": seed}
        )
        assert isinstance(answer.output_parsed, Verdict) and answer.status == "completed"


def test_scores(client):
    answer = client.responses.create(
        input="on", include=["message.output_text.logprobs"], top_logprobs=2, **TWELVE
    )
    scores = answer.output[0].content[0].logprobs
    assert len(scores) == 12 and all(len(score.top_logprobs) == 2 for score in scores)
    assert all(score.logprob == score.top_logprobs[0].logprob for score in scores)  # greedy


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported here"),
        ({"tools": [{"type": "web_search"}]}, "tools is not supported"),
        ({"background": True}, "background is not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "the cat " * 60}, "maximum context length"),
        ({"temperature": -1}, "temperature is -1"),
    ],
    ids=str,
)
def test_what_is_refused(body, message, running):
    body = {"model": "instructions", "input": "on", **body}
    answer = HTTP.post(f"{running.address}/v1/responses", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]
