"""What the catalogue says of a model without opening it."""

from pathlib import Path

import pytest

from gptmill.serve import catalogue


def test_what_is_no_config_is_left_out(tmp_path: Path) -> None:
    for name, text in (("a", "[]"), ("b", '{"n_embd": null}'), ("c", "[" * 100_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(b"x")
        (tmp_path / name / "config.json").write_text(text)
    with pytest.raises(catalogue.UserError) as caught:
        catalogue.Catalogue(tmp_path)
    assert all(f"{tmp_path / name / 'config.json'}" in str(caught.value) for name in "abc")
