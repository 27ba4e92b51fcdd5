"""JSON schemas as clients send them: bounded before anything is built of them, and closed.

A schema comes from a stranger and goes to a compiler that is not ours, so its size and shape are
bounded here. Objects are closed as Ollama and llama.cpp do: where `properties` are named and
`additionalProperties` is not, nothing else may stand there (the standard would allow anything, and
a small model then invents keys until it is cut). An explicit `true` or schema stays.
"""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from gptmill.errors import UserError

ANY_OBJECT = {"type": "object"}
MAX_BYTES = 64 * 1024  # of the schema as compact JSON
MAX_DEPTH = 100  # arrays and objects in one another; llguidance reads 128
MAX_PROPERTIES = 1000  # in all objects together
MAX_ENUM = 1000  # values in all enums together
MAX_SUBSCHEMAS = 2000
MAX_STRING = 4096  # characters of a name, a constant or a value of an enum
MAX_PATTERN = 512  # characters of a regular expression
MAX_REPETITIONS = 5000  # characters of a regular expression, its repetitions written out
MAX_LENGTH = 100_000  # minLength, maxItems and their like

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLE = (
    "additionalProperties", "items", "contains", "not", "if", "then", "else", "propertyNames",
    "unevaluatedProperties", "unevaluatedItems", "additionalItems", "contentSchema",
)  # fmt: skip
LENGTHS = (
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "minContains", "maxContains",
)  # fmt: skip
# A class, in which a first `]` is a character; an escape, perhaps with a name in braces.
ITEM = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\[pPxuU]\{[^}]*\}|\\.", re.DOTALL)
# Formats that hold for every text; llguidance refuses what it does not know.
ANY_TEXT = ("binary", "password", "path")
IN_PLACE = ("allOf", "anyOf", "oneOf")  # they speak of the same value as what stands beside them


def prepare(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that is enforced; an empty one is any object, as at Ollama.

    Raises:
        UserError: it is beyond a bound, which the message names.
    """
    _check_bounds(schema)
    return _Closing(schema).schema() if schema else ANY_OBJECT


def _check_bounds(schema: dict[str, Any]) -> None:
    _check_depth(schema)
    size = len(json.dumps(schema, separators=(",", ":")))
    _bound("bytes of JSON", size, MAX_BYTES)
    nodes = list(_subschemas(schema))
    _bound("subschemas", len(nodes), MAX_SUBSCHEMAS)
    _bound("properties", sum(len(_named(node)) for node in nodes), MAX_PROPERTIES)
    _bound("values of enum", sum(len(_list(node, "enum")) for node in nodes), MAX_ENUM)
    for node in nodes:
        _check_node(node)


def _check_node(node: dict[str, Any]) -> None:
    if "x-guidance" in node:
        raise UserError("format: x-guidance is no keyword of JSON Schema")
    for name in LENGTHS:
        value = node.get(name, 0)
        if isinstance(value, int | float):
            _bound(name, value, MAX_LENGTH)
    patterns = [*_mapping(node, "patternProperties"), node.get("pattern")]
    for pattern in patterns:
        if isinstance(pattern, str):
            _bound("characters of a pattern", len(pattern), MAX_PATTERN)
            _bound(
                "characters of a pattern, its repetitions written out",
                written_out(pattern),
                MAX_REPETITIONS,
            )
    for text in [*_mapping(node, "properties"), *_strings([node.get("const"), node.get("enum")])]:
        _bound("characters of a name or a value", len(text), MAX_STRING)


def _bound(what: str, value: float, most: int) -> None:
    if value > most:
        shown = f"{value:.0f}" if value < 1e15 else "far more"
        raise UserError(f"format: {what}: {shown}, which is above this server's bound of {most}")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise UserError(f"format is nested deeper than the {MAX_DEPTH} levels it may have")
        level = [
            part for whole in level for part in _inside(whole) if isinstance(part, dict | list)
        ]


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _strings(value: Any) -> Iterator[str]:
    """All texts in a piece of JSON, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in [*_inside(value), *(value if isinstance(value, dict) else ())]:
            yield from _strings(part)


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all within it; what `enum`, `const` and `default` hold is data."""
    if not isinstance(schema, dict):
        return
    yield schema
    for name in MAPS:
        for part in _mapping(schema, name).values():
            yield from _subschemas(part)
    for name in (*LISTS, *SINGLE):
        value = schema.get(name)
        for part in value if isinstance(value, list) else [value]:
            yield from _subschemas(part)


def _mapping(node: dict[str, Any], name: str) -> dict[str, Any]:
    value = node.get(name)
    return value if isinstance(value, dict) else {}


def _list(node: dict[str, Any], name: str) -> list[Any]:
    value = node.get(name)
    return value if isinstance(value, list) else []


def _named(node: dict[str, Any]) -> dict[str, Any]:
    return {**_mapping(node, "properties"), **_mapping(node, "patternProperties")}


def written_out(pattern: str) -> float:
    """About how many characters a regular expression has when `x{m,n}` is n times x."""
    groups, last, at = [0.0], 0.0, 0  # characters of each open group; those of the last item
    while at < len(pattern):
        character, width, again = pattern[at], 1, 1
        if character == "(":
            groups.append(0.0)
        elif character == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif character == "{" and (end := pattern.find("}", at)) > 0:
            width = end - at + 1
            counts = [int(part) for part in pattern[at + 1 : end].split(",") if part.isdecimal()]
            again = max(counts, default=1)
            groups[-1] += last * max(0, again - 1)
            last *= again
        else:
            width = _item_width(pattern, at)
            last = 1.0
            groups[-1] += last
        at += width
    return sum(groups)


def _item_width(pattern: str, at: int) -> int:
    """Characters of the escape, the class or the plain character at a place."""
    item = ITEM.match(pattern, at)
    return len(item[0]) if item else 1


class _Closing:
    """Closes the objects of one schema.

    Schemas that speak of the same value (`allOf`, `properties` beside `anyOf`, …) may each name a
    part of its properties. They are closed to the names of all of them together.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._made: dict[tuple[str, tuple[str, ...]], str] = {}
        self._definitions: dict[str, Any] = {}
        self._count = 0

    def schema(self) -> dict[str, Any]:
        closed = self._close(self._root, None)
        if self._definitions:
            closed["$defs"] = {**_mapping(closed, "$defs"), **self._definitions}
        return closed

    def _close(self, schema: Any, names: tuple[str, ...] | None) -> Any:
        """A closed schema; `names` are the properties that the same value may have by what stands
        beside this one, None where nothing does."""
        if not isinstance(schema, dict):
            return schema
        self._count += 1 + len(names or ())
        _bound("subschemas and names, references followed", self._count, 4 * MAX_SUBSCHEMAS)
        if names is None and _combines(schema):
            names = tuple(self._names(schema, frozenset()))
        if schema.get("format") in ANY_TEXT:
            schema = {key: value for key, value in schema.items() if key != "format"}
        schema = self._with_names(schema)
        closed = {key: self._within(key, value) for key, value in schema.items()}
        for key in IN_PLACE:
            if isinstance(schema.get(key), list):
                closed[key] = [self._close(part, names) for part in schema[key]]
        if names is not None and isinstance(schema.get("$ref"), str):
            closed["$ref"] = self._referred(schema["$ref"], names)
        if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
            others = dict.fromkeys(names or (), True)
            closed["properties"] = {**closed["properties"], **_without(others, schema)}
            closed["additionalProperties"] = False
        return closed

    def _with_names(self, schema: dict[str, Any]) -> dict[str, Any]:
        """`propertyNames`, which llguidance has not, as the properties or the pattern it allows:
        pydantic writes it for dictionaries."""
        rule = schema.get("propertyNames")
        if isinstance(rule, dict) and isinstance(rule.get("$ref"), str):
            rule = self._target(rule["$ref"])
        if not isinstance(rule, dict) or "patternProperties" in schema:
            return schema
        value = schema.get("additionalProperties", True)
        names = [rule["const"]] if "const" in rule else _list(rule, "enum")
        rest = {key: part for key, part in schema.items() if key != "propertyNames"}
        if names and all(isinstance(name, str) for name in names):
            allowed = {**dict.fromkeys(names, value), **_mapping(schema, "properties")}
            properties = {name: part for name, part in allowed.items() if name in names}
            return {**rest, "properties": properties, "additionalProperties": False}
        if isinstance(rule.get("pattern"), str) and "properties" not in schema:
            patterns = {rule["pattern"]: value}
            return {**rest, "patternProperties": patterns, "additionalProperties": False}
        return schema

    def _within(self, key: str, value: Any) -> Any:
        """What a keyword holds, its schemas closed; they are of other values."""
        if key in MAPS and isinstance(value, dict):
            return {name: self._close(part, None) for name, part in value.items()}
        if key == "prefixItems" and isinstance(value, list):
            return [self._close(part, None) for part in value]
        if key in SINGLE:
            if isinstance(value, list):
                return [self._close(part, None) for part in value]
            return self._close(value, None)
        return value

    def _names(self, schema: Any, seen: frozenset[str]) -> dict[str, None]:
        """The properties named for one value, in order."""
        if not isinstance(schema, dict):
            return {}
        names = dict.fromkeys(_mapping(schema, "properties"))
        parts = [part for key in IN_PLACE for part in _list(schema, key)]
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen |= {reference}
            parts.insert(0, self._target(reference))
        for part in parts:
            names |= self._names(part, seen)
        return names

    def _referred(self, reference: str, names: tuple[str, ...]) -> str:
        """A reference to its target closed to these names, which becomes a definition."""
        key = (reference, names)
        if key not in self._made:
            taken = _mapping(self._root, "$defs")
            number = len(self._made)
            while (name := f"closed-{number}") in taken:
                number += len(taken)
            self._made[key] = f"#/$defs/{name}"
            target = dict(self._target(reference))
            for definitions in ("$defs", "definitions"):
                target.pop(definitions, None)
            self._definitions[name] = self._close(target, names)
        return self._made[key]

    def _target(self, reference: str) -> dict[str, Any]:
        where: Any = self._root
        start, *steps = reference.split("/")
        for step in steps:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(where, list) and step.isdecimal() and int(step) < len(where):
                where = where[int(step)]
            else:
                where = where.get(step) if isinstance(where, dict) else None
        if start != "#" or not isinstance(where, dict):
            raise UserError(f"format is no JSON schema: {reference} is not in it")
        return where


def _combines(schema: dict[str, Any]) -> bool:
    """Whether several parts of it speak of the same value; the branches of `anyOf` alone do not,
    nor does an `allOf` of one."""
    together = sum(bool(schema.get(key)) for key in ("properties", "$ref", *IN_PLACE))
    return together > 1 or len(_list(schema, "allOf")) > 1


def _without(names: dict[str, bool], schema: dict[str, Any]) -> dict[str, bool]:
    return {name: value for name, value in names.items() if name not in schema["properties"]}
