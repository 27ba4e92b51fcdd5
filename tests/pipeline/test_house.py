"""The plan of the house: imports run down, stages declare what they import, names are known."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

PACKAGE = Path("src/gptmill")
# Each room and its floor; an import may go to a lower floor, or stay in its own room.
FLOORS = {
    "errors": 0, "files": 1, "params": 2, "prompt": 2, "tokenizer": 2, "model": 3,
    "engine": 4, "data": 4, "weights": 5, "generate": 5, "diagnosis": 2, "tasks": 6,
    "onnx": 7, "harness": 7, "judge": 7, "tracking": 7, "study": 7, "report": 8, "serve": 8,
    "doctor": 8, "sweep": 9, "cli": 10, "stages": 10,
}  # fmt: skip
# Rooms that change no output: the values of params.yaml are tracked as such, errors are messages,
# tracking mirrors what is measured.
NO_OUTPUT = {"params", "errors", "tracking"}
STAGES = sorted(path.stem for path in Path("stages").glob("[!_]*.py"))


def module_path(module: str) -> Path | None:
    """The file of one of our modules."""
    base = Path("src" if module.split(".")[0] == "gptmill" else ".") / module.replace(".", "/")
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


@cache
def imported(path: Path) -> frozenset[Path]:
    """The files of our own modules that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {module for module in modules if module.split(".")[0] in ("gptmill", "stages")}
    return frozenset(path for module in ours if (path := module_path(module)))


def room(path: Path) -> str:
    if path.parts[0] == "stages":
        return "stages"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def closure(path: Path) -> set[Path]:
    """All files that running this one can import."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += imported(file)
    return seen


def pipeline() -> dict:
    return yaml.safe_load(Path("dvc.yaml").read_text())["stages"]


SOURCES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_run_down(path: Path) -> None:
    here = room(path)
    assert here in FLOORS, f"{here} has no floor in this test's plan"
    for target in imported(path) - {PACKAGE / "__init__.py"}:
        there = room(target)
        assert there == here or FLOORS[there] < FLOORS[here], f"{path} imports {target}"


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_the_imports(stage: str) -> None:
    """An edit of any file that can change a stage's outputs must make DVC run it again."""
    definition = pipeline()[stage]
    deps = [Path(dep) for dep in definition.get("do", definition)["deps"]]
    script = Path(f"stages/{stage}.py")
    needed = {path for path in closure(script) if room(path) not in NO_OUTPUT}
    needed.discard(PACKAGE / "__init__.py")
    bare = {path for path in needed if not any(dep == path or dep in path.parents for dep in deps)}
    # An empty __init__.py holds nothing that could change.
    assert not {path for path in bare if path.read_text().strip()}
    ours = {dep for dep in deps if dep.parts[0] == "src"}
    idle = {dep for dep in ours if not any(dep == p or dep in p.parents for p in needed)}
    assert not idle, "deps that the stage does not import"


def test_every_script_is_a_stage_and_the_other_way_round() -> None:
    assert sorted(pipeline()) == STAGES


def test_every_parameter_section_belongs_to_a_stage() -> None:
    from gptmill.params import Parameters

    tracked = {
        name.split(".")[0]
        for definition in pipeline().values()
        for name in definition.get("do", definition).get("params", [])
    }
    assert tracked == set(Parameters.model_fields) - {"profile"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_the_parameters_it_reads(stage: str) -> None:
    definition = pipeline()[stage]
    tracked = [p.split(".")[0] for p in definition.get("do", definition).get("params", [])]
    text = Path(f"stages/{stage}.py").read_text()
    read = set(re.findall(r"(?:parameters|load\(\))\.([a-z_0-9]+)", text))
    assert read == set(tracked)


def test_every_parameter_is_read() -> None:
    """A value nobody reads is a lie in params.yaml."""
    from gptmill.params import describe

    sources = [*PACKAGE.rglob("*.py"), *Path("stages").glob("*.py")]
    code = "\n".join(path.read_text() for path in sources if path != PACKAGE / "params.py")
    names = {name.split(".")[-1] for name, _, _ in describe()}
    assert not {name for name in names if not re.search(rf"\b{name}\b", code)}


def test_functions_stay_short() -> None:
    long = []
    for path in [*PACKAGE.rglob("*.py"), *Path("stages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    long.append(f"{path}:{node.lineno} {node.name} {lines}")
    assert not long


def test_only_tracking_imports_mlflow() -> None:
    importers = {
        room(path)
        for path in [*SOURCES, *Path("stages").glob("*.py")]
        if re.search(r"^\s*(import|from) mlflow", path.read_text(), re.MULTILINE)
    }
    assert importers <= {"tracking"}


def test_the_taught_ladder_stays_outside_production() -> None:
    ladder = PACKAGE / "model/attention_study.py"
    importers = {room(path) for path in SOURCES if ladder in imported(path)}
    assert importers <= {"study"}
    assert {path.stem for path in Path("stages").glob("*.py") if ladder in closure(path)} <= {
        "study"
    }
