"""Sampling options, declared once: their meaning, bounds, and names and defaults elsewhere.

The command line, params.yaml, the bodies of both protocols and MLflow's signature derive from this
dataclass. It imports nothing that computes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from gptmill.errors import UserError


class Declaration(NamedTuple):
    """What an option says of itself.

    Attributes:
        help: its meaning, in the words of a command line.
        low, high: the least and the greatest value; None for no bound.
        above: the value that it must exceed; None for none.
        names: what protocols call it where they have another name.
        defaults: those of protocols, where they differ.
    """

    name: str
    kind: type
    default: Any
    help: str
    low: float | None
    high: float | None
    above: float | None
    names: dict[str, str]
    defaults: dict[str, Any]

    def name_in(self, protocol: str) -> str:
        return self.names.get(protocol, self.name)

    def default_in(self, protocol: str) -> Any:
        return self.defaults.get(protocol, self.default)

    def fault(self, value: Any) -> str | None:
        """What the value must be, if it is not that."""
        if self.above is not None and not self.above < value < math.inf:
            return f"above {self.above:g}"
        if self.low is not None and self.high is not None:
            return None if self.low <= value <= self.high else f"between {self.low} and {self.high}"
        if self.low is not None and not self.low <= value < math.inf:
            return f"at least {self.low:g}"
        return None


def _option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    names: dict[str, str] | None = None,
    defaults: dict[str, Any] | None = None,
) -> Any:
    about = {"help": help, "low": low, "high": high, "above": above}
    return field(
        default=default, metadata={**about, "names": names or {}, "defaults": defaults or {}}
    )


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens and when to stop. The end-of-text token always stops.

    `top_p` is nucleus sampling (Holtzman et al. 2020), `min_p` Nguyen et al. 2024. The repetition
    penalty divides positive logits and multiplies negative ones of tokens already in the prompt or
    the response (CTRL, Keskar et al. 2019). `stop_tokens` are ids that end the response, themselves
    left out; so are `stop_strings`. Each sequence has a stream of its own under the seed.

    Raises:
        UserError: a value out of its range.
    """

    max_new_tokens: int = _option(
        64,
        "tokens to generate at most",
        low=1,
        names={"ollama": "num_predict", "openai": "max_tokens", "responses": "max_output_tokens"},
    )
    temperature: float = _option(
        0.0,
        "divides logits; 0 takes the likeliest token",
        low=0,
        defaults={"ollama": 0.8, "openai": 1.0},
    )
    top_k: int = _option(
        0,
        "keep the k likeliest tokens and those tied with the last; 0 is off",
        low=0,
        defaults={"ollama": 40},
    )
    top_p: float = _option(
        1.0,
        "keep the likeliest tokens of this joint mass; 1 is off",
        low=0,
        high=1,
        defaults={"ollama": 0.9},
    )
    min_p: float = _option(
        0.0, "keep tokens of this share of the likeliest's; 0 is off", low=0, high=1
    )
    repetition_penalty: float = _option(
        1.0, "above 1 discourages repeats; 1 is off", above=0, names={"ollama": "repeat_penalty"}
    )
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = _option(0, "the same seed gives the same text", low=0, high=2**64 - 1)

    def __post_init__(self) -> None:
        for declared in declarations():
            value = getattr(self, declared.name)
            if fault := declared.fault(value):
                raise UserError(f"{declared.name} is {value!r}; it must be {fault}")
        if not all(self.stop_strings):
            raise UserError(
                f"stop_strings is {self.stop_strings!r}; it must be texts of at least one character"
            )


def declarations() -> Iterator[Declaration]:
    """Every option that is a number, in order."""
    for one in fields(SamplingOptions):
        if one.metadata:
            kind = type(one.default)
            yield Declaration(one.name, kind, one.default, **one.metadata)


# The numbers that protocols take as they are; what limits tokens and what seeds means more there.
PLAIN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def plain() -> list[Declaration]:
    """The declarations of `PLAIN`."""
    return [declared for declared in declarations() if declared.name in PLAIN]
