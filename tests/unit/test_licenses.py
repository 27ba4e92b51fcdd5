"""Every installed package has a license that this project has looked at."""

import re
from importlib.metadata import Distribution, distributions

import pytest

# Free for any use, and the MPL, which binds changes of the package's own files alone.
FINE = (
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|CNRI-Python|Zope|HPND|Unlicense"
    r"|CC0|Zlib|BSL|MPL|Mozilla)\b"
)
# Whose metadata names no license, or a copyleft one, each looked at.
LOOKED_AT = {
    "gptmill": "MIT; an editable installation of old may lack it",
    "asyncssh": "EPL 2.0 or GPL 2 or later; comes with DVC, not imported by us",
    "chardet": "LGPL 2.1; comes with DVC, not imported by us",
    "grandalf": "GPL 2 or EPL 1.0; draws `dvc dag`, comes with DVC, not imported by us",
    "huey": "MIT; comes with MLflow",
    "pygit2": "GPL 2 with a linking exception; comes with DVC, not imported by us",
    "skops": "MIT; comes with MLflow",
}
# Known to some environments only: NVIDIA's libraries under PyPI's build of PyTorch for Linux.
PROPRIETARY = r"^(nvidia-|cuda-)"


def license_of(package: Distribution) -> str:
    """What the metadata says: expression, classifiers, or the old field's first line."""
    metadata = package.metadata
    classifiers = [
        entry.split(" :: ")[-1]
        for entry in metadata.get_all("Classifier") or []
        if entry.startswith("License ::")
    ]
    # Not by index: another package may have put its own reader in place, which raises.
    old = (metadata.get("License") or "").split("\n")[0]
    return metadata.get("License-Expression") or "; ".join(classifiers) or old


def fine(license: str) -> bool:
    """One of several to choose from is enough; of several that apply together each must do."""
    return any(
        all(re.search(FINE, part, re.I) for part in re.split(r"\bAND\b", choice))
        for choice in re.split(r"\bOR\b|;", license)
    )


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("Apache-2.0 OR GPL-2.0-or-later", True),
        ("MIT AND GPL-2.0-only", False),
        ("GNU General Public License v2 (GPLv2)", False),
        ("A LIMITED license", False),
        ("", False),
    ],
)
def test_what_counts_as_fine(license: str, expected: bool) -> None:
    assert fine(license) == expected


def test_licenses_are_known() -> None:
    licenses = {p.metadata["Name"].lower(): license_of(p) for p in distributions()}
    unknown = {
        name: license
        for name, license in licenses.items()
        if name not in LOOKED_AT and not re.search(PROPRIETARY, name) and not fine(license)
    }
    assert not unknown, "look at these licenses; docs/dependencies.md says what is fine"
