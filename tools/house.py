"""Figures of the house: how long its parts are, what is repeated, what opening a model touches.

    python tools/house.py [ROOT] [--model models/onnx/instructions] [--history pretrain]

ROOT is a checkout, by default this one; of an earlier commit: `git worktree add DIR COMMIT`.
"""

import argparse
import ast
import os
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

RUN = 6  # lines
OPENING = """
import builtins, io, sys
from pathlib import Path
reads, opened = 0, io.open
def counted(file, *arguments, **named):
    global reads
    reads += Path(str(file)).name == "config.json"
    return opened(file, *arguments, **named)
io.open = builtins.open = counted
try:
    from gptmill.runtime.session import Generator
except ImportError:
    from gptmill.onnx.session import Generator
Generator(Path(sys.argv[1]))
print(sum(name.partition(".")[0] == "gptmill" for name in sys.modules), reads)
"""


def sources(root: Path) -> list[Path]:
    return sorted([*(root / "src").rglob("*.py"), *(root / "stages").glob("*.py")])


def functions(root: Path) -> list[int]:
    """Lines of every function and method."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sources(root))
    nodes = (node for tree in trees for node in ast.walk(tree))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(n.end_lineno or 0) - n.lineno + 1 for n in nodes if isinstance(n, kinds)]


def repeated(root: Path) -> list[list[str]]:
    """Runs of six lines of code that stand in several places; imports and docstrings apart."""
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in sources(root):
        lines = list(code(path))
        for at in range(len(lines) - RUN + 1):
            run = tuple(text for _, text in lines[at : at + RUN])
            places[run].append(f"{path.relative_to(root)}:{lines[at][0]}")
    found = [sites for sites in places.values() if len(sites) > 1]
    return [sites for sites in found if not continues(sites, found)]


def continues(sites: list[str], found: list[list[str]]) -> bool:
    """Whether a run is the previous line's run, one line on."""
    names = [site.rpartition(":") for site in sites]
    before = [f"{path}:{int(line) - 1}" for path, _, line in names]
    return before in found


def code(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that compute: no blank ones, comments, imports, docstrings, lone brackets."""
    text = path.read_text(encoding="utf-8")
    hidden: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        plain = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if plain or isinstance(node, ast.Import | ast.ImportFrom):
            hidden |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if number not in hidden and len(line) > 2 and not line.startswith("#"):
            yield number, line


def opening(root: Path, model: Path) -> list[str]:
    """Our modules that opening a model imports, and how often it reads a `config.json`."""
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-c", OPENING, str(model)]
    return subprocess.check_output(command, env=environment, text=True).split()


def reruns(root: Path, stage: str) -> tuple[int, int, int]:
    """Commits of code, those that change a room the stage imports from, and one of its files."""
    from gptmill import closure

    git = ["git", "-C", str(root)]
    log = subprocess.check_output(
        [*git, "log", "--no-merges", "--format=%H", "--", "src"], text=True
    )
    rooms = files = 0
    for commit in log.split():
        shown = subprocess.check_output(
            [*git, "show", "--format=", "--name-only", commit], text=True
        )
        changed = {Path(name) for name in shown.split("\n") if name.startswith(("src/", "stages/"))}
        needed = set(at(git, commit, stage, closure))
        parts = {closure.room(path) for path in needed if path.parts[0] == "src"}
        ours = {p for p in changed if p.parts[0] == "src" and p.parts[1] == "gptmill"}
        rooms += bool(changed & needed) or any(closure.room(path) in parts for path in ours)
        files += bool(changed & needed)
    return len(log.split()), rooms, files


def at(git: list[str], commit: str, stage: str, closure) -> list[Path]:
    """The files that a stage imported at a commit; none before there was the stage."""
    here = Path.cwd()
    with TemporaryDirectory() as folder:
        packed = subprocess.run([*git, "archive", commit, "src", "stages"], capture_output=True)
        if packed.returncode:
            return []
        with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        closure.modules.cache_clear()
        os.chdir(folder)
        try:
            script = Path(f"stages/{stage}.py")
            return closure.closure(script) if script.exists() else []
        finally:
            os.chdir(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path())
    parser.add_argument("--model", type=Path, help="an ONNX folder to open")
    parser.add_argument("--history", metavar="STAGE", help="count what each commit would rerun")
    options = parser.parse_args()
    root = options.root.resolve()
    stages = [p for p in (root / "stages").glob("[!_]*.py")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(root)}
    longest = max(lines, key=lambda path: lines[path])
    tenths = quantiles(functions(root), n=10)
    runs = repeated(root)
    print("lines of a stage, median:", median(lines[path] for path in stages))
    print("longest file:", longest.relative_to(root), lines[longest])
    print(f"functions, p50 / p90: {tenths[4]:.0f} / {tenths[8]:.0f}")
    print(f"repeated runs of {RUN} lines: {len(runs)} in {sum(map(len, runs))} places")
    for sites in runs:
        print("   ", ", ".join(sites))
    if options.model:
        modules, reads = opening(root, options.model.resolve())
        print(f"opening {options.model}: {modules} modules, {reads} reads of a config.json")
    if options.history:
        commits, rooms, files = reruns(root, options.history)
        print(f"{options.history} over {commits} commits: {rooms} by rooms, {files} by files")


if __name__ == "__main__":
    main()
