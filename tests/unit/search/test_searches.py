"""The shipped searches fit params.yaml and their stage."""

from pathlib import Path

import pytest

from gptmill.params import PARAMS_FILE, read_yaml
from gptmill.search.search import read_search


@pytest.mark.parametrize("path", sorted(Path("profiles/search").glob("*.yaml")), ids=str)
def test_a_shipped_search_fits(path: Path) -> None:
    search = read_search(path, read_yaml(PARAMS_FILE))
    assert {name.split(".")[0] for name in search.space} == {path.stem}
    assert "test/" not in search.objective, "never choose on the test set"
    assert len(search.distributions()) == len(search.space)
