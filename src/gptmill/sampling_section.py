"""The section `sampling` of params.yaml, derived from what `sampling_options` declares."""

from typing import Annotated, Any

from pydantic import Field, create_model

from gptmill.sampling_options import declarations
from gptmill.sources import Section

# Defaults have no place here: params.yaml always says what will run.
_NUMBERS: dict[str, Any] = {
    option.name: (
        option.kind,
        Field(ge=option.low, le=option.high, gt=option.above, description=option.help),
    )
    for option in declarations()
    if option.name != "seed"  # a stage's section, or `runtime`, has it
}
_Numbers: Any = create_model("_Numbers", __base__=Section, **_NUMBERS)


class Sampling(_Numbers):
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        strict=False, description="texts that end a continuation, left out of it"
    )
