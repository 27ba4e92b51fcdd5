"""Every parameter's dotted name, type and meaning, read from the tree itself."""

from typing import Literal, get_args, get_origin

from gptmill.params import Parameters
from gptmill.sources import Section, sections_of, sources_of


def describe(section: type[Section] = Parameters, prefix: str = "") -> list[tuple[str, str, str]]:
    """Every leaf of the tree as (dotted name, type, meaning).

    Of a choice of sources each has its own leaves: `download.corpus[files].path`.
    """
    rows = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        nested = sections_of(kind)
        for section_ in nested:
            choice = f"[{sources_of(section_)[0]}]" if len(nested) > 1 else ""
            rows += describe(section_, f"{prefix}{name}{choice}.")
        if nested:
            continue
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        type_name = " | ".join(choices) or getattr(kind, "__name__", str(kind))
        rows.append((f"{prefix}{name}", type_name, field.description or ""))
    return rows
