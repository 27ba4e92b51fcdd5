"""The files that a stage can import: of the code, only these decide what it writes.

DVC runs a stage again when `code/STAGE.txt` changes, which the stage `code` writes in the format of
`sha256sum`. An edit of a file that a stage does not import reruns nothing.
"""

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from gptmill.files import atomic_folder, sha256, sha256_tree

FOLDER = Path("code")
PACKAGE = Path("src/gptmill")
STAGES = Path("stages")
HERE = Path(__file__).parent
# Rooms that change no output: the values of params.yaml are tracked as such, sampling's too, errors
# are messages, tracking mirrors what is measured, `process` decides whether outputs are published
# and never what, DVC and git look up what is known by its hash, and versions refuses to run; shapes
# gives JSON as it stands, or refuses. Nor does the package's own __init__, which names what others
# define.
WITHOUT_EFFECT = frozenset(
    (
        "__init__",
        "params",
        "sampling_options",
        "runtime_sections",
        "sampling_section",
        "sources",
        "shapes",
        "errors",
        "tracking",
        "process",
        "dvc",
        "git",
        "versions",
        "closure",
    )
)


def names() -> list[str]:
    """The stages that run code of the package; `code` itself lists it."""
    return sorted(path.stem for path in STAGES.glob("[!_]*.py") if path.stem != FOLDER.name)


def room(path: Path) -> str:
    """The part of the package that a file belongs to; `stages` for a stage's script."""
    if path.parts[0] == STAGES.name:
        return STAGES.name
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def modules(path: Path) -> frozenset[str]:
    """The modules that a file imports, anywhere in it, and names that may be modules."""
    return frozenset(_modules(ast.parse(path.read_text(encoding="utf-8"))))


def imported(path: Path) -> frozenset[Path]:
    """The files of our own modules that a file imports, their packages' `__init__` among them."""
    ours = (name for name in modules(path) if name.split(".")[0] in (PACKAGE.name, STAGES.name))
    parts = [name.split(".") for name in ours]
    packages = {".".join(part[:i]) for part in parts for i in range(1, len(part) + 1)}
    return frozenset(file for name in packages if (file := _file(name)))


def closure(script: Path) -> list[Path]:
    """All Python files that running a script can import, rooms without effect left out."""
    seen: set[Path] = set()
    waiting = {script, script.parent / "__init__.py"}  # which `python -m` runs first
    while waiting:
        file = waiting.pop()
        seen.add(file)
        waiting |= {f for f in imported(file) if room(f) not in WITHOUT_EFFECT} - seen
    return sorted(file for file in seen if file.stat().st_size)


def listing(stage: str) -> dict[Path, str]:
    """SHA-256 of every file of the code that a stage runs: modules, and the pages beside them."""
    sources = closure(STAGES / f"{stage}.py")
    folders = {file.parent for file in sources} - {PACKAGE, STAGES}
    beside = (file for folder in folders for file in folder.iterdir() if file.is_file())
    return {file: sha256(file) for file in sorted({*sources, *filter(_is_data, beside)})}


def write_listings(folder: Path) -> None:
    """`STAGE.txt` for every stage, as `sha256sum --check` reads it."""
    with atomic_folder(folder) as temporary:
        for stage in names():
            lines = [f"{digest}  {file.as_posix()}\n" for file, digest in listing(stage).items()]
            (temporary / f"{stage}.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def read_listing(path: Path) -> dict[Path, str]:
    """What `write_listings` wrote of one stage."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {Path(file): digest for digest, _, file in (line.partition("  ") for line in lines)}


def code_hash() -> str:
    """The SHA-256 of all of the package's sources, committed or not."""
    return sha256_tree(HERE)


def code_in_use() -> str:
    """One SHA-256 over the sources that this process has imported; rooms without effect are out."""
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    files = {Path(file) for file in loaded if file}
    ours = {f"{HERE.name}/{f.relative_to(HERE).as_posix()}": f for f in files if HERE in f.parents}
    rooms = {name: name.split("/")[1].removesuffix(".py") for name in ours}
    ours = {name: file for name, file in ours.items() if rooms[name] not in WITHOUT_EFFECT}
    ours |= {f"{STAGES.name}/{f.name}": f for f in files if f.parent.name == STAGES.name}
    lines = [f"{name}\0{sha256_tree(ours[name])}\n" for name in sorted(ours)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    base = Path(PACKAGE.parent if module.split(".")[0] == PACKAGE.name else ".")
    base /= module.replace(".", "/")
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.exists()), None)


def _is_data(path: Path) -> bool:
    return path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
