"""Structured output as people ask for it: pydantic's models through the official clients.

The model has random weights, so that only the constraint can make its answers valid.
"""

import json
from enum import Enum
from typing import Annotated, Literal

import ollama
import openai
import pytest
from pydantic import BaseModel, Field

from tests.unit.serve.conftest import CONTEXT, HTTP

SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_predict": 900}
ON = [{"role": "user", "content": "on"}]


class Color(Enum):
    RED, BLUE = "red", "blue"


class Pet(BaseModel):
    name: Annotated[str, Field(max_length=8)]
    kind: Literal["cat", "dog"]
    age: Annotated[int, Field(ge=0, le=30)] | None = None


class Owner(BaseModel):
    pets: Annotated[list[Pet], Field(max_length=2)]
    favorite: Pet | None = None
    color: Color = Color.RED


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: Annotated[int, Field(ge=0, le=9)]


class Square(BaseModel):
    kind: Literal["square"]
    side: Annotated[int, Field(ge=0, le=9)]


class Drawing(BaseModel):
    shape: Annotated[Circle | Square, Field(discriminator="kind")]
    scores: dict[Literal["a", "b"], Annotated[int, Field(ge=0, le=9)]]


class Note(BaseModel):
    """Nothing in it is bounded, and a model of random weights closes nothing."""

    title: str
    tags: list[str]
    author: Pet | None
    weight: float


MODELS = [Pet, Owner, Drawing]


@pytest.fixture(scope="module")
def clients(running) -> tuple[ollama.Client, openai.OpenAI]:
    address = running.address
    return ollama.Client(address), openai.OpenAI(base_url=f"{address}/v1", api_key="none")


@pytest.mark.parametrize("model", MODELS)
def test_ollamas_format_is_kept(model, clients):
    for seed in range(10):
        answer = clients[0].chat(
            "instructions", ON, format=model.model_json_schema(), options={**SAMPLED, "seed": seed}
        )
        model.model_validate_json(answer.message.content)


@pytest.mark.parametrize("model", MODELS)
def test_openais_response_format_is_kept(model, clients):
    wanted = {"name": "it", "schema": model.model_json_schema()}
    for seed in range(10):
        answer = clients[1].chat.completions.create(
            model="long",
            messages=ON,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": wanted},
        )
        model.model_validate_json(answer.choices[0].message.content)


def test_openais_parse_is_kept(clients):
    for model in (Pet, Owner):
        answer = clients[1].chat.completions.parse(
            model="long", messages=ON, seed=1, response_format=model
        )
        assert isinstance(answer.choices[0].message.parsed, model)


@pytest.mark.parametrize("limit", [60, 70, None])
def test_what_nothing_bounds_ends_within_the_limit(limit, clients):
    """With no limit, that is the context's end."""
    for seed in range(10):
        options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": seed}
        more = {} if limit is None else {"num_predict": limit}
        answer = clients[0].chat(
            "instructions", ON, format=Note.model_json_schema(), options={**options, **more}
        )
        assert answer.done_reason == "stop" and answer.eval_count < (limit or CONTEXT)
        Note.model_validate_json(answer.message.content)
        same = clients[1].chat.completions.parse(
            model="instructions", messages=ON, seed=seed, response_format=Note,
            **({} if limit is None else {"max_tokens": limit}),
        )  # fmt: skip
        assert isinstance(same.choices[0].message.parsed, Note)


def test_a_limit_below_any_end_is_said(clients):
    answer = clients[0].chat(
        "instructions", ON, format=Note.model_json_schema(), options={"num_predict": 12}
    )
    assert answer.done_reason == "length" and answer.eval_count == 12


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["q"]}}, "required": ["a"]}


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_object", "json_schema": {"schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    ],
    ids=str,
)
def test_a_schema_is_kept_wherever_servers_take_it(wanted, running):
    body = {"model": "instructions", "messages": ON, "response_format": wanted, "seed": 1}
    answer = HTTP.post(f"{running.address}/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == '{"a":"q"}'


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"type": "json_schema", "json_schema": SCHEMA}, "json_schema: unknown option type"),
        ({"type": "json_schema"}, "json_schema is missing"),
        ({"type": "text", "schema": SCHEMA}, "needs the type json_schema"),
        (
            {"type": "json_object", "schema": SCHEMA, "json_schema": {"schema": SCHEMA}},
            "two schemas",
        ),
        ({"type": "json_object", "strict": True}, "unknown option strict"),
    ],
    ids=str,
)
def test_a_misplaced_schema_is_refused(wanted, message, running):
    body = {"model": "instructions", "messages": ON, "response_format": wanted}
    answer = HTTP.post(f"{running.address}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_an_empty_schema_is_any_object(running):
    body = {"model": "text", "prompt": "a", "stream": False, "options": {"num_predict": 3}}
    answer = HTTP.post(f"{running.address}/api/generate", json={**body, "format": {}})
    assert answer.json()["response"].startswith("{")


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("where", ["model", "stop", "deep", "name"])
def test_half_a_surrogate_pair_is_refused(path, where, running):
    body = {"model": "instructions", "prompt": "a", "messages": ON}
    half = json.dumps("\ud83d")
    extra = {
        "model": f'"model": {half}',
        "stop": f'"options": {{"stop": [{half}]}}',
        "deep": f'"format": {{"properties": {{"a": {{"const": {half}}}}}}}',
        "name": f"{half}: 1",
    }[where]
    content = json.dumps(body)[:-1] + ", " + extra + "}"
    answer = HTTP.post(running.address + path, content=content)
    assert answer.status_code == 400 and "half of a surrogate pair" in answer.text
