"""Pictures are files of the same bytes, whatever a text holds."""

from pathlib import Path

from PIL import Image

from gptmill.study.draw import bars, log_axis, panels, save


def draw(path: Path) -> bytes:
    figure, (left, right) = panels(1, 2)
    bars(left, ["costs $5 and $6", "a_b^c"], [1.0, 2.0], ["1", "2"])
    right.plot([1, 2], [1e-5, 1])
    log_axis(right.yaxis)
    save(figure, path)
    return path.read_bytes()


def test_the_same_picture_has_the_same_bytes_and_nothing_of_the_day(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a.png"), draw(tmp_path / "b.png")
    assert first == second
    image = Image.open(tmp_path / "a.png")
    assert image.info.keys() <= {"gamma", "dpi"}
    assert len(image.getcolors()) <= 64


def test_a_dollar_is_a_dollar(tmp_path: Path) -> None:
    """Mathematical notation would fail on what stands between two dollars in somebody's text."""
    figure, (axes,) = panels()
    axes.set_title(r"from $5\ to 6_$")
    save(figure, tmp_path / "a.png")
