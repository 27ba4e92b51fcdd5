"""What the README names exists."""

import re
from pathlib import Path

import pytest

TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", Path("README.md").read_text())


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_a_test_that_proves_a_claim(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", Path(file).read_text(), re.MULTILINE)


def test_every_tool_has_its_proof() -> None:
    table = Path("README.md").read_text().split("## Tools that open our folders")[1]
    rows = [line for line in table.split("\n## ")[0].splitlines() if line.startswith("|")][2:]
    assert len(rows) > 5
    assert not [row for row in rows if not re.search(r"`tests/[\w/]+\.py::\w+`", row)]
