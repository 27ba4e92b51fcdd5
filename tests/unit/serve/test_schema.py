"""JSON schemas: bounds, closing, and the process in which they are tried."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptmill.errors import UserError
from gptmill.serve import schema as bounds
from gptmill.serve.constraint import Grammars
from gptmill.serve.grammar import vocabulary_of
from gptmill.serve.schema import prepare, written_out
from gptmill.serve.trial import Trial
from gptmill.tokenizer import train_byte_pairs
from tests.support.onnx_folders import TEXT


def optional(count: int, **kind) -> dict:
    return {"type": "object", "properties": {f"p{n}": kind for n in range(count)}}


def nested(depth: int) -> dict:
    schema: dict = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "bound"),
    [
        (optional(1001), "properties: 1001, which is above this server's bound of 1000"),
        ({"enum": ["x" * 60] * 1100}, "bytes of JSON"),
        ({"enum": list(range(1001))}, "values of enum: 1001"),
        ({"anyOf": [{"type": "null"}] * 2001}, "subschemas: 2002"),
        ({"const": "x" * 4097}, "characters of a name or a value: 4097"),
        ({"enum": [{"a": ["x" * 4097]}]}, "characters of a name or a value"),
        ({"properties": {"x" * 4097: {}}}, "characters of a name or a value"),
        ({"pattern": "x" * 513}, "characters of a pattern: 513"),
        ({"pattern": "(a{1,100}){1,51}"}, "repetitions written out: 5100"),
        ({"patternProperties": {"((a{9}){9}{9}){9}": {}}}, "repetitions written out: 6561"),
        ({"minLength": 10**6}, "minLength: 1000000"),
        ({"items": {"maxItems": 10**400}}, "maxItems: far more"),
        (nested(101), "deeper than the 100 levels"),
        ({"properties": {"a": {"x-guidance": {}}}}, "x-guidance is no keyword"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_beyond_a_bound_names_it(schema, bound):
    with pytest.raises(UserError, match=re.escape(bound)):
        prepare(schema)


def test_what_is_data_is_no_schema():
    """`enum`, `const` and `default` hold values, in which every name is allowed."""
    value = {"properties": {"a": 1}, "x-guidance": {}, "pattern": "x" * 999}
    for schema in ({"const": value}, {"enum": [value]}, {"default": value, "type": "integer"}):
        assert prepare(schema) == schema


@pytest.mark.parametrize(
    ("pattern", "characters"),
    [
        ("abc", 3),
        (r"\d{4}-\d{2}-\d{2}", 10),
        ("[0-9a-f]{8}(-[0-9a-f]{4}){3}", 23),
        ("((a{2}){3}){4}", 24),
        (r"\{5}[]{9}]{2}", 5),
        (r"\p{L}{3}[^\]x]{4}", 7),
        ("(ab|c){2,}", 8),
        ("a{", 2),
    ],
)
def test_repetitions_are_counted(pattern, characters):
    assert written_out(pattern) == characters


NAMED = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**NAMED, "additionalProperties": False}
LOOSE = {**NAMED, "additionalProperties": True}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        ({}, {"type": "object"}),
        ({"type": "object"}, {"type": "object"}),
        ({"type": "string", "format": "path"}, {"type": "string"}),
        (
            {"additionalProperties": NAMED, "propertyNames": {"enum": ["x", "y"]}},
            {"properties": {"x": CLOSED, "y": CLOSED}, "additionalProperties": False},
        ),
        (
            {"additionalProperties": NAMED, "propertyNames": {"pattern": "^x"}},
            {"patternProperties": {"^x": CLOSED}, "additionalProperties": False},
        ),
        (NAMED, CLOSED),
        (LOOSE, LOOSE),
        ({**NAMED, "additionalProperties": NAMED}, {**NAMED, "additionalProperties": CLOSED}),
        ({"type": "array", "items": NAMED}, {"type": "array", "items": CLOSED}),
        ({"prefixItems": [NAMED]}, {"prefixItems": [CLOSED]}),
        ({"anyOf": [NAMED, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"oneOf": [NAMED, LOOSE]}, {"oneOf": [CLOSED, LOOSE]}),
        ({"allOf": [NAMED]}, {"allOf": [CLOSED]}),
        (
            {"$ref": "#/$defs/A", "$defs": {"A": NAMED}},
            {"$ref": "#/$defs/A", "$defs": {"A": CLOSED}},
        ),
        (
            {"properties": {"x": {"properties": {"y": NAMED}}}},
            {
                "properties": {"x": {"properties": {"y": CLOSED}, "additionalProperties": False}},
                "additionalProperties": False,
            },
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_objects_are_closed_at_every_level(schema, closed):
    assert prepare(schema) == closed


@pytest.fixture(scope="module")
def grammars():
    made = Grammars(train_byte_pairs([TEXT], 280))
    yield made
    made.close()


def accepts(grammars: Grammars, schema: dict, value) -> bool:
    """Whether the constraint lets a value through to its end."""
    constraint = grammars.constraint(schema, time.monotonic() + 60)
    text = json.dumps(value, separators=(",", ":"))
    for token in grammars._tokens.tokenize_str(text):
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token, left=10**6)
    return bool(constraint.allowed()[grammars._tokens.eos_token])


BOTH = {
    "allOf": [{"$ref": "#/$defs/A"}, {"type": "object", "properties": {"b": {"type": "null"}}}],
    "$defs": {"A": {**NAMED, "required": ["a"]}},
}
EITHER = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "anyOf": [
        {"properties": {"b": {"type": "null"}}, "required": ["b"]},
        {"properties": {"c": {"type": "null"}}, "required": ["c"]},
    ],
}
TREE = {
    "allOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {"$ref": "#/$defs/tree"}}}],
    "$defs": {
        "A": {**NAMED, "required": ["a"]},
        "tree": {"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {"$ref": "#/$defs/tree"}}}]},
    },
}


@pytest.mark.parametrize(
    ("schema", "value", "allowed"),
    [
        (BOTH, {"a": 1, "b": None}, True),
        (BOTH, {"a": 1}, True),
        (BOTH, {"a": 1, "c": None}, False),
        (BOTH, {"b": None}, False),
        (EITHER, {"a": 1, "b": None}, True),
        (EITHER, {"a": 1, "c": None}, True),
        (EITHER, {"a": 1, "d": None}, False),
        (TREE, {"a": 1, "b": {"a": 1, "b": {"a": 2}}}, True),
        (TREE, {"a": 1, "b": {"a": 1, "b": {"c": 2}}}, False),
        (LOOSE, {"z": 1}, True),
    ],
    ids=str,
)
def test_schemas_of_the_same_value_share_their_names(schema, value, allowed, grammars):
    assert accepts(grammars, schema, value) is allowed


def test_a_thousand_optional_properties_are_kept(grammars):
    schema = optional(1000, type="string")
    assert accepts(grammars, schema, {"p0": "x", "p500": "y", "p999": "z"})
    assert not accepts(grammars, schema, {"p0": "x", "p1000": "y"})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]},
        {"type": "string", "pattern": "^(a?){500}a{500}$"},
    ],
    ids=str,
)
def test_what_has_no_text_or_is_too_complex_is_refused(schema, grammars):
    with pytest.raises(UserError, match="can be enforced"):
        grammars.constraint(schema, time.monotonic() + 60)


def test_a_schema_seen_before_is_not_built_again(grammars, monkeypatch):
    schema = {"enum": ["a", "b"]}
    grammars.constraint(schema, time.monotonic() + 60)
    monkeypatch.setattr(grammars, "_trial", None)
    assert accepts(grammars, schema, "a") and accepts(grammars, schema, "b")
    assert not accepts(grammars, schema, "c")


@pytest.fixture
def tried():
    tokenizer = train_byte_pairs([TEXT], 280)
    made = Trial(vocabulary_of(tokenizer))
    yield made
    made.close()


SMALL = '{"type": "integer"}'


def test_a_crash_ends_the_trial_alone(tried):
    """30,000 optional properties overflow llguidance's stack."""
    tried.check(SMALL, time.monotonic() + 60)
    first = tried._process.pid
    with pytest.raises(UserError, match="ended the process"):
        tried.check(json.dumps(optional(30_000)), time.monotonic() + 60)
    tried.check(SMALL, time.monotonic() + 60)
    assert tried._process.pid != first


def test_a_hang_ends_the_trial_alone(tried):
    """5,000 take seconds, and nobody waits for them."""
    tried.check(SMALL, time.monotonic() + 60)
    with pytest.raises(TimeoutError):
        tried.check(json.dumps(optional(5000)), time.monotonic() + 0.2)
    tried.check(SMALL, time.monotonic() + 60)


def test_a_trials_computing_is_bounded():
    ended = subprocess.run(
        [sys.executable, "-c", BOUNDED], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == -signal.SIGPROF and not ended.stdout


BOUNDED = """
from gptmill.serve.trial import _bound_computing
_bound_computing(0.1)
while True:
    pass
"""


def test_the_bounds_are_documented():
    page = Path("docs/serving.md").read_text()
    for name in ("MAX_BYTES", "MAX_DEPTH", "MAX_PROPERTIES", "MAX_ENUM", "MAX_SUBSCHEMAS",
                 "MAX_STRING", "MAX_PATTERN", "MAX_REPETITIONS", "MAX_LENGTH"):  # fmt: skip
        value = getattr(bounds, name)
        assert f"| {value:,} |" in page, name
