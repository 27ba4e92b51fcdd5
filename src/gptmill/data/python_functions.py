"""Python's own functions as a corpus, read from the standard library of this interpreter.

A document is a module: its functions that have a docstring, each whole and at the margin, two
blank lines apart. So a split by document is one by module. The same Python version gives the same
bytes.
"""

import ast
import hashlib
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gptmill.files import write_json

# Not the library: packages installed beside it, tests, and the retired lib2to3.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def write_functions(folder: Path, library: Path | None = None) -> None:
    """Write `MODULE.txt` for each module, and `dropped.json`: what was left out and why, counted.

    Args:
        library: a folder of modules; by default this interpreter's standard library.
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    dropped: Counter[str] = Counter()
    seen: set[bytes] = set()
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if LEFT_OUT & set(parts):
            continue
        try:
            functions = list(_functions(path.read_text(encoding="utf-8"), seen, dropped))
        except (SyntaxError, UnicodeDecodeError):
            dropped["module that does not parse"] += 1
            continue
        if functions:
            name = ".".join(parts).removesuffix(".py")
            text = "\n\n\n".join(functions) + "\n"
            (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")
    write_json(folder / "dropped.json", dict(dropped))


def _functions(source: str, seen: set[bytes], dropped: Counter[str]) -> Iterator[str]:
    """Functions and methods with a docstring that no module before had; comments and layout do
    not make a difference."""
    lines = source.split("\n")  # as ast counts them: form feeds end no line
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, Function):
            continue
        if not ast.get_docstring(node):
            dropped["no docstring"] += 1
            continue
        text = textwrap.dedent("\n".join(lines[_first_line(node) - 1 : node.end_lineno]))
        if not _parses(text):  # a string that reaches further left than the code around it
            dropped["not whole at the margin"] += 1
            continue
        digest = hashlib.sha256(ast.dump(ast.parse(text)).encode()).digest()
        if digest in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(digest)
        yield text


def headers(text: str) -> Iterator[str]:
    """Decorators, signature and docstring of each function at the margin of `text`, if it has a
    body beyond them. Nothing of a text that does not parse.

    The line break after the docstring is left to the completion: tokenizers join it to the
    indentation that follows, and on its own it announces an empty line.
    """
    if not _parses(text):
        return
    lines = text.split("\n")
    for node in ast.parse(text).body:
        if isinstance(node, Function) and ast.get_docstring(node) and len(node.body) > 1:
            yield "\n".join(lines[_first_line(node) - 1 : node.body[0].end_lineno])


def is_whole_function(text: str) -> bool:
    """Whether `text` parses and its first function does something beyond its docstring."""
    if not _parses(text):
        return False
    body = ast.parse(text).body
    return bool(body) and isinstance(body[0], Function) and len(body[0].body) > 1


def _parses(text: str) -> bool:
    """Whether this is Python, by the grammar of this interpreter."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _first_line(node: Function) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
