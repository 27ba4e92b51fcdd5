"""Other values for params.yaml: the overlays in profiles/."""

import difflib
import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from gptmill.errors import UserError
from gptmill.files import atomic_file
from gptmill.params import PARAMS_FILE, Parameters, parse, read_yaml

PROFILES = Path("profiles")


def list_profiles() -> list[tuple[str, str]]:
    """Each profile's name and title, which is the first comment line of its file."""
    rows = []
    for path in sorted(PROFILES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append((path.stem, first.removeprefix("#").strip()))
    return rows


def apply_profile(name: str, path: Path = PARAMS_FILE) -> None:
    """Write the default profile, then the overlay `profiles/NAME.yaml`, into params.yaml.

    Comments and order of params.yaml stay. The default, `calibration`, names every value, so that
    nothing of the former profile is left.

    Raises:
        UserError: no such profile (the nearest is named), or a result that does not fit the tree;
            params.yaml is then untouched.
    """
    text = _with_profile(name, path)
    with atomic_file(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def profile_parameters(name: str, path: Path = PARAMS_FILE) -> Parameters:
    """What params.yaml would say under a profile; nothing is written. Errors of `apply_profile`."""
    text = _with_profile(name, path)
    return parse(YAML(typ="safe", pure=True).load(text), f"profile {name}")


def _with_profile(name: str, path: Path) -> str:
    """The text of params.yaml under a profile, checked."""
    known = [profile for profile, _ in list_profiles()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
        raise UserError(f"no profile '{name}' in {PROFILES}/; {hint}")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000  # leave lines as they are
    read_yaml(path)  # says what is wrong with it
    document = yaml.load(path.read_text(encoding="utf-8"))
    for overlay in dict.fromkeys(("calibration", name)):
        _overlay(document, read_yaml(PROFILES / f"{overlay}.yaml"))
    document["profile"] = name
    text = io.StringIO()
    yaml.dump(document, text)
    parse(YAML(typ="safe", pure=True).load(text.getvalue()), f"profile {name}")
    return text.getvalue()


def _overlay(target: dict[str, Any], values: dict[str, Any], prefix: str = "") -> None:
    """Set values in place, so that the comments around them survive.

    A data set's source is taken whole: another source has other keys.
    """
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict) and prefix != "download.":
            _overlay(target[key], value, f"{prefix}{key}.")
        else:
            target[key] = value
