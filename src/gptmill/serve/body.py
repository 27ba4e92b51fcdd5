"""The bodies of requests: what they may hold, and that nothing in them is dropped in silence."""

import difflib
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from gptmill.errors import UserError
from gptmill.generate.sampling import SamplingOptions

MAX_MESSAGES = 2048
MAX_TEXTS = 4096  # of one classification
MAX_STOPS = 64
MAX_STOP = 256  # characters of a stop string
MAX_NAME = 256  # characters of a model's name

Stop = Annotated[str, StringConstraints(max_length=MAX_STOP)]
Stops = Annotated[
    list[Stop],
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
ModelName = Annotated[str, StringConstraints(max_length=MAX_NAME)]


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

    model_config = ConfigDict(extra="allow")
    without_effect: ClassVar[frozenset[str]] = frozenset()
    known_elsewhere: ClassVar[frozenset[str]] = frozenset()
    unsupported: ClassVar[Mapping[str, tuple | None]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: part for name, part in value.items() if part is not None}
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


def sampling(names: Mapping[str, str], **options: Any) -> SamplingOptions:
    """Sampling options; an error names the fields as the client knows them.

    Args:
        names: the protocol's names of options, where they differ.
        options: those of `SamplingOptions`; any integer is a seed, None a random one.

    Raises:
        UserError: a value is out of its range.
    """
    seed = options.pop("seed")
    options["seed"] = secrets.randbits(64) if seed is None else seed % 2**64
    try:
        return SamplingOptions(**options)
    except UserError as error:
        name, _, rest = str(error).partition(" ")
        raise UserError(f"{names.get(name, name)} {rest}") from None


def stop_strings(stops: list[str]) -> tuple[str, ...]:
    """Those that are not empty: an empty one would end an answer before it begins."""
    return tuple(stop for stop in stops if stop)
