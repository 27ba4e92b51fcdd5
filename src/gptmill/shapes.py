"""JSON of a shape that pydantic checks. Inference needs plain shapes alone, and no pydantic."""

from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from gptmill.errors import UserError
from gptmill.files import read_json

Shape = TypeVar("Shape")


def read_json_as(path: Path, shape: type[Shape]) -> Shape:
    """Read JSON of a shape, such as `list[dict[str, str]]` or a pydantic model.

    Raises:
        UserError: as of `read_json`, or another shape; the message names file and place.
    """
    values: Any = read_json(path)
    try:
        return cast(Shape, TypeAdapter(shape).validate_python(values, strict=True))
    except ValidationError as error:
        raise _other_shape(error, str(path)) from None


def parse_json_as(text: str, shape: type[Shape], origin: str) -> Shape:
    """Parse JSON of a shape that stands elsewhere than in a file; `origin` names it in errors.

    Raises:
        UserError: not JSON, or another shape.
    """
    try:
        return cast(Shape, TypeAdapter(shape).validate_json(text, strict=True))
    except ValidationError as error:
        raise _other_shape(error, origin) from None


def _other_shape(error: ValidationError, origin: str) -> UserError:
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"])) or "it"
    return UserError(f"{origin} has another shape: {place}: {fault['msg']}")
