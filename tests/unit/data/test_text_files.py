"""Bytes become the right text, or an error that says why not."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from gptmill.data.text_files import (
    decode,
    lines,
    plain_stem,
    plain_suffix,
    read_text,
    without_surrogates,
)
from gptmill.errors import UserError

GERMAN = "Die Bäume wachsen übermäßig schön in großen Gärten, und die Vögel hören nicht auf. " * 8
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива. " * 8
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 20


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain", "ascii"),
        (GERMAN, "utf-8"),
        (GERMAN, "utf-8-sig"),
        (GERMAN, "utf-16"),
        (GERMAN, "utf-16-le"),
        (GERMAN, "utf-16-be"),
        (JAPANESE, "utf-16"),
        (JAPANESE, "utf-32"),
        (RUSSIAN, "cp1251"),
        (GERMAN, "cp1252"),
        (JAPANESE, "shift_jis"),
    ],
)
def test_an_encoding_is_found(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding))[0] == text


def test_what_is_not_utf8_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.txt").write_bytes(RUSSIAN.encode("cp1251"))
    assert read_text(tmp_path / "a.txt") == RUSSIAN
    assert "read as cp1251: 'Все счастливые" in capsys.readouterr().out
    (tmp_path / "b.txt").write_bytes(RUSSIAN.encode())
    read_text(tmp_path / "b.txt")
    assert capsys.readouterr().out == ""


def test_a_named_encoding_counts_and_a_wrong_one_is_told() -> None:
    assert decode("é".encode("cp1252"), "cp1252") == ("é", "cp1252")
    with pytest.raises(UserError, match="it is not utf-8: byte 0xe9 at offset 0"):
        decode("é".encode("cp1252"), "utf-8", "it")
    with pytest.raises(UserError, match="no encoding 'utf-9'"):
        decode(b"a", "utf-9")


def test_western_is_taken_where_central_european_fits_as_well() -> None:
    text = "L'été dernier, à Paris, le garçon a mangé des crêpes près de la forêt. " * 5
    assert decode(text.encode("latin-1"))[0] == text
    polish = "Zażółć gęślą jaźń, wczoraj był piękny dzień w Łodzi. " * 5
    assert decode(polish.encode("cp1250")) == (polish, "cp1250")


def test_a_nul_in_utf8_is_not_read_as_utf16() -> None:
    with pytest.raises(UserError, match="NUL bytes"):
        decode(b"hello\x00world and some more text")


def test_binary_is_no_text() -> None:
    with pytest.raises(UserError, match="NUL bytes"):
        decode(bytes(range(256)) * 20)


def test_compressed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(GERMAN.encode()))
    with pa.output_stream(str(tmp_path / "b.TXT.zst"), compression="zstd") as stream:
        stream.write(GERMAN.encode())
    assert read_text(tmp_path / "a.txt.gz") == read_text(tmp_path / "b.TXT.zst") == GERMAN
    assert plain_suffix(tmp_path / "b.TXT.zst") == ".txt"
    assert plain_stem(Path("my.book.TXT.zst")) == "my.book"
    (tmp_path / "c.gz").write_bytes(gzip.compress(GERMAN.encode())[:40])
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path / "c.gz")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("a\rb\nc", ["a\rb", "c"]),
        ("a\rb\r", ["a", "b"]),
        ("a\u2028b\x0cc\x85d\x1ee\n\n", ["a\u2028b\x0cc\x85d\x1ee", ""]),
        ("", []),
    ],
)
def test_only_line_ends_end_lines(text: str, expected: list[str]) -> None:
    assert lines(text) == expected


def test_halves_of_a_pair() -> None:
    assert without_surrogates("a\ud83d\ude00b\ud83dc") == "a😀b\ufffdc"
