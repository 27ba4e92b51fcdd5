"""Functions taken from modules: whole, at the margin, once, and every other one counted."""

import ast
import json
import sysconfig
from pathlib import Path

import pytest

from gptmill.data.corpus import documents
from gptmill.data.python_functions import headers, is_whole_function, write_functions
from gptmill.tokenizer import train_byte_pairs

FIRST = '''"""A module."""
import functools
\f
def outer(a):
    """Say a."""
    # kept
    return a


class Box:
    @functools.cache
    def inner(self, b):
        """Say b.

        Twice.
        """
        def bare():
            return b
        return bare() * 2

    def left(self):
        """Say nothing."""
        return """
at the margin"""
'''
SECOND = '''async def wait():
    """Wait."""


def outer(a):
    """Say a."""
    return (a)  # laid out differently
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    for name in ("package/tests", "site-packages"):
        (folder / name).mkdir(parents=True)
        (folder / name / "left_out.py").write_text(FIRST)
    (folder / "package" / "first.py").write_text(FIRST)
    (folder / "second.py").write_text(SECOND)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "old.py").write_bytes(b"# caf\xe9\n")
    return folder


def test_functions_come_whole_at_the_margin_and_once(library: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    write_functions(output, library)
    first, second = documents(output)
    assert (first.id, second.id) == ("package.first", "second")
    outer, inner = first.text.removesuffix("\n").split("\n\n\n")
    assert outer == 'def outer(a):\n    """Say a."""\n    # kept\n    return a'
    assert inner.startswith("@functools.cache\ndef inner(self, b):\n")
    assert inner.endswith("    def bare():\n        return b\n    return bare() * 2")
    assert second.text == 'async def wait():\n    """Wait."""\n'
    assert json.loads((output / "dropped.json").read_text()) == {
        "module that does not parse": 2,
        "no docstring": 1,
        "not whole at the margin": 1,
        "duplicate": 1,
    }


def without_indentation(node: ast.FunctionDef) -> str:
    """The function as its syntax tree, its docstring as `inspect` cleans it."""
    node.body[0].value.value = ast.get_docstring(node)
    return ast.dump(node)


def test_the_interpreters_own_library(tmp_path: Path) -> None:
    """Every documented function of a real package, equal to its source."""
    library = Path(sysconfig.get_paths()["stdlib"]) / "json"
    write_functions(tmp_path, library)
    texts = {document.id: document.text for document in documents(tmp_path)}
    assert {"decoder", "encoder"} <= texts.keys()
    for name, text in texts.items():
        module = ast.parse((library / f"{name}.py").read_text())
        nodes = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
        known = {without_indentation(node) for node in nodes if ast.get_docstring(node)}
        assert {without_indentation(node) for node in ast.parse(text).body} == known


def test_headers_end_with_the_docstring() -> None:
    text = SECOND + '\n\n@cached\ndef f(\n    x,\n):\n    """Do.\n\n    More."""\n    return x\n'
    assert list(headers(text)) == [
        'def outer(a):\n    """Say a."""',
        '@cached\ndef f(\n    x,\n):\n    """Do.\n\n    More."""',
    ]
    assert list(headers("return = 3")) == []


def test_a_header_is_cut_where_the_tokenizer_cuts() -> None:
    """Else a model is asked to go on from tokens that no training text has."""
    text = SECOND[SECOND.index("def outer") :]
    tokenizer = train_byte_pairs([text] * 4, 300)
    (header,) = headers(text)
    whole, start = tokenizer.encode(text), tokenizer.encode(header)
    assert whole[: len(start)] == start
    assert whole[: len(start) + 1] != tokenizer.encode(header + "\n")


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        ("    return a\n", True),
        ("    return a\n\nx = f(1", False),
        ("", False),  # a docstring alone is Python, but completes nothing
        ("    return (a\n", False),
        ("  return a\n", False),
        ("x = 1\n", False),
        ("    return '\0'\n", False),
    ],
)
def test_what_counts_as_a_whole_function(body: str, whole: bool) -> None:
    assert is_whole_function('def f(a):\n    """Say a."""\n' + body) == whole
