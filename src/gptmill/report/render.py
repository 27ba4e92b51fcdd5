"""Templates with the house's style."""

import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gptmill.report.graph import duration


def render(template: str, *, package: str = "gptmill.report", **values: Any) -> str:
    """A template of a package, by default this one, with the house's style."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=PackageLoader("gptmill.report", ""),  # of what two pages share
    )
    environment.filters |= {"duration": duration, "breakable": _breakable}
    style = Markup(files("gptmill.report").joinpath("style.css").read_text(encoding="utf-8"))
    text = files(package).joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(style=style, **values)


def _breakable(name: str) -> Markup:
    """A dotted or slashed name that may break where its parts meet."""
    return Markup(re.sub(r"([./_])", r"\1<wbr>", str(escape(name))))
