"""JSON of a shape that pydantic checks. Inference needs plain shapes alone, and no pydantic."""

import json
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
    return _shaped(read_json(path), shape, str(path))


def parse_json_as(text: str, shape: type[Shape], origin: str) -> Shape:
    """Parse JSON of a shape that stands elsewhere than in a file; `origin` names it in errors.

    Raises:
        UserError: not JSON, or another shape.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} is not JSON: {error}") from None
    return _shaped(values, shape, origin)


def _shaped(values: Any, shape: type[Shape], origin: str) -> Shape:
    try:
        return cast(Shape, TypeAdapter(shape).validate_python(values, strict=True))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "it"
        raise UserError(f"{origin} has another shape: {place}: {fault['msg']}") from None
