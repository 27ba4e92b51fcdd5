"""A search space: which parameters a study tries, and what it looks for."""

from pathlib import Path
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, ValidationError, model_validator

from gptmill.errors import UserError
from gptmill.params import parse, read_yaml
from gptmill.search.cases import merged
from gptmill.sources import Section

Number = int | float


class Dimension(Section):
    """One parameter: a range of numbers, or a choice of values."""

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    choices: list[Any] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _is_range_or_choice(self) -> "Dimension":
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices stand alone")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError("needs choices, or low below high")
        elif self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def bounds(self) -> tuple[Any, Any]:
        """The ends of a range."""
        assert self.low is not None and self.high is not None, "the validator lets no other by"
        return self.low, self.high

    def distribution(self) -> BaseDistribution:
        """The range as Optuna has it."""
        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(*self.bounds(), log=self.log)
        return FloatDistribution(*self.bounds(), log=self.log)

    def ends(self) -> list[Any]:
        """The values between which, or among which, all others lie."""
        return list(self.bounds()) if self.choices is None else self.choices

    def holds(self, value: Any) -> bool:
        """Whether the search could have come upon this value."""
        if self.choices is not None:
            return value in self.choices
        low, high = self.bounds()
        return isinstance(value, int | float) and low <= value <= high


class Search(Section):
    """A search file: `space` maps dotted names of params.yaml to what to try."""

    objective: str
    direction: Literal["minimize", "maximize"]
    space: dict[str, Dimension] = Field(min_length=1)

    def distributions(self) -> dict[str, BaseDistribution]:
        return {name: dimension.distribution() for name, dimension in self.space.items()}


def read_search(path: Path, parameters: dict[str, Any]) -> Search:
    """The search of a file, held against the parameter tree.

    Raises:
        UserError: no such file, a fault in it, an unknown parameter, or an end of a range that
            does not fit the parameter.
    """
    try:
        search = Search.model_validate(read_yaml(path))
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()]
        raise UserError(f"{path} is not a search:\n" + "\n".join(faults)) from None
    for name, dimension in search.space.items():
        for value in dimension.ends():
            parse(merged(parameters, {name: value}), f"{path} at {name} = {value}")
    return search
