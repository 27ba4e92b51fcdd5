"""Files of a shape that pydantic checks. Inference needs plain shapes alone, and no pydantic."""

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
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "it"
        raise UserError(f"{path} has another shape: {place}: {fault['msg']}") from None
