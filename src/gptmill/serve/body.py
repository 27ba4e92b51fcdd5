"""The bodies of requests: what they may hold, and that nothing in them is dropped in silence."""

import difflib
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    create_model,
    model_validator,
)

from gptmill.errors import UserError
from gptmill.sampling_options import SamplingOptions, declarations, plain

MAX_MESSAGES = 2048
MAX_TEXTS = 4096  # of one classification
MAX_STOPS = 64
MAX_STOP = 256  # characters of a stop string
MAX_NAME = 256  # characters of a model's name

Stop = Annotated[str, StringConstraints(max_length=MAX_STOP)]
Stops = Annotated[
    list[Stop],
    Field(max_length=MAX_STOPS),
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=Stop | list[Stop],
    ),
]
ModelName = Annotated[str, StringConstraints(max_length=MAX_NAME)]


def _describe(schema: dict[str, Any], kind: type["Part"]) -> None:
    """The OpenAPI document names what is taken, too, says that nothing else is, and that null
    counts as absent."""
    required = schema.get("required", [])
    for name, value in schema["properties"].items():
        if name not in required:
            schema["properties"][name] = {"anyOf": [value, {"type": "null"}]}
    taken = {*kind.without_effect, *kind.known_elsewhere, *kind.unsupported}
    schema["properties"] = {**{name: {} for name in sorted(taken)}, **schema["properties"]}
    schema["additionalProperties"] = False


def _takes_numbers_alone(annotation: Any) -> bool:
    """Whether a field's type has numbers in it, and neither truth values nor just anything."""
    inside = get_args(annotation)
    if not inside:
        return annotation in (int, float)
    kinds = {kind for part in inside for kind in (part, *get_args(part))}
    return not {bool, Any} & kinds and any(_takes_numbers_alone(part) for part in inside)


def _has_truth(value: Any) -> bool:
    """Whether true or false stands in a piece of JSON."""
    if isinstance(value, list | dict):
        return any(map(_has_truth, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


class Part(BaseModel):
    """An object in a body.

    A field that is null counts as absent. A field that the type does not have is an error, unless
    it changes no text.

    Class attributes:
        without_effect: fields of the protocol that change no text.
        known_elsewhere: names that a misspelt field may have meant, too.
        unsupported: fields that would change it, with the values that do not; None for those that
            another field switches on.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=_describe)
    without_effect: ClassVar[frozenset[str]] = frozenset()
    known_elsewhere: ClassVar[frozenset[str]] = frozenset()
    unsupported: ClassVar[Mapping[str, tuple | None]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: part for name, part in value.items() if part is not None}
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_false_numbers(cls, value: Any) -> Any:
        """Pydantic would take true for 1."""
        for name, part in value.items() if isinstance(value, dict) else ():
            field = cls.model_fields.get(name)
            if field and _takes_numbers_alone(field.annotation) and _has_truth(part):
                raise ValueError(f"{name} is {json.dumps(part)[:80]}, which is not a number")
        return value

    @model_validator(mode="after")
    def _without_unknown(self) -> "Part":
        for name, value in (self.model_extra or {}).items():
            if name not in self.without_effect:
                self._check_unsupported(name, value)
        return self

    def _check_unsupported(self, name: str, value: Any) -> None:
        if name not in self.unsupported:
            known = [*self.known_elsewhere, *type(self).model_fields]
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"unknown option {name[:80]}" + "".join(f": did you mean {n}?" for n in near)
            )
        neutral = self.unsupported[name]
        if neutral is not None and value not in neutral:
            only = f", except as {neutral[0]!r}" if neutral else ""
            raise ValueError(f"{name} is not supported here{only}")


class Body(Part):
    """A whole body."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """Half of a surrogate pair is no character; nobody can encode it."""
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the body has half of a surrogate pair, \\u{ord(error.object[error.start]):04x}, "
                "which is no character"
            ) from None
        except RecursionError:
            raise ValueError("the body is nested too deeply") from None
        return value


def numbers(protocol: str) -> Any:
    """A base for bodies with the sampling options that a protocol takes as they are; their bounds
    are `SamplingOptions`' own."""
    fields: dict[str, Any] = {
        one.name_in(protocol): (one.kind, one.default_in(protocol)) for one in plain()
    }
    return create_model(f"{protocol}_numbers", __base__=Part, **fields)


def sampling(protocol: str, given: Any, **options: Any) -> SamplingOptions:
    """Sampling options; an error names the fields as the client knows them.

    Args:
        given: what has the fields of `numbers`.
        options: the rest, and what is to be instead; any integer is a seed, None a random one.

    Raises:
        UserError: a value is out of its range.
    """
    seed = options.pop("seed")
    options["seed"] = secrets.randbits(64) if seed is None else seed % 2**64
    taken = {one.name: getattr(given, one.name_in(protocol)) for one in plain()}
    try:
        return SamplingOptions(**{**taken, **options})
    except UserError as error:
        name, _, rest = str(error).partition(" ")
        names = {one.name: one.name_in(protocol) for one in declarations()}
        raise UserError(f"{names.get(name, name)} {rest}") from None


def stop_strings(stops: list[str]) -> tuple[str, ...]:
    """Those that are not empty: an empty one would end an answer before it begins."""
    return tuple(stop for stop in stops if stop)
