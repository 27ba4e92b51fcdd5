"""The plan of the house: imports run down, stages declare what they import, names are known."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gptmill import closure
from gptmill.closure import PACKAGE, imported, modules, room
from gptmill.params import read_yaml
from gptmill.versions import VERSIONS_FILE

# Each room and its floor; an import may go to a lower floor, or stay in its own room.
FLOORS = {
    "errors": 0, "git": 0, "files": 1, "likelihood": 1, "sources": 1, "sampling_options": 1,
    "seal": 1.5,
    "sampling_section": 1.5, "runtime_sections": 1.5, "batching": 1, "shapes": 2, "closure": 2,
    "params": 2, "prompt": 2,
    "reading": 2, "tokenizer": 2, "conversation": 2.5, "profiles": 3, "meanings": 3,
    "model": 3, "card": 4,
    "dvc": 3, "versions": 3, "process": 3.5, "fetch": 3.8,
    "embedded": 2, "engine": 4, "data": 4, "weights": 5, "generate": 5, "diagnosis": 2,
    "evaluate": 5.5, "tasks": 6, "runtime": 6, "export": 7, "judge": 7, "tracking": 7, "study": 7,
    "report": 8, "compare": 8.5, "serve": 8, "doctor": 8, "plan": 8.5, "check": 8.6, "search": 9,
    "cli": 10, "stages": 10,
}  # fmt: skip
# Packages whose version changes no hashed output: they carry bytes that are checked by hash or come
# from a server, check types, lock, watch, show progress, or draw the report, which is not hashed.
NO_BYTES = {
    "filelock", "httpx", "httpx2", "huggingface_hub", "jinja2", "markupsafe", "ollama", "psutil",
    "pydantic", "requests", "tqdm", "urllib3",
}  # fmt: skip
# Not in the lock: a corpus of theirs names datatrove's version in its own section of params.yaml.
OPTIONAL = {"datatrove", "py3langid"}
# What to pip another name than to Python, and what computes or writes for it.
PACKAGES = {
    "PIL": {"pillow"}, "onnx": {"onnx", "protobuf"}, "sklearn": {"scikit-learn", "scipy"},
    "charset_normalizer": {"charset-normalizer"},
}  # fmt: skip
STAGES = closure.names()


def pipeline() -> dict:
    return yaml.safe_load(Path("dvc.yaml").read_text())["stages"]


def params(stage: str) -> list:
    """A stage's `params`: names in params.yaml, and mappings from another file to names in it."""
    definition = pipeline()[stage]
    return definition.get("do", definition).get("params", [])


def sections(stage: str) -> set[str]:
    """The sections of params.yaml that a stage tracks."""
    return {name.split(".")[0] for name in params(stage) if isinstance(name, str)}


def tracked_packages(stage: str) -> list[str]:
    """The packages of versions.yaml that a stage tracks."""
    others = [entry for entry in params(stage) if isinstance(entry, dict)]
    assert {file for entry in others for file in entry} <= {str(VERSIONS_FILE)}
    return [name for entry in others for names in entry.values() for name in names]


SOURCES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_run_down(path: Path) -> None:
    here = room(path)
    assert here in FLOORS, f"{here} has no floor in this test's plan"
    for target in imported(path) - {PACKAGE / "__init__.py"}:
        there = room(target)
        assert there == here or FLOORS[there] < FLOORS[here], f"{path} imports {target}"


def importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def test_every_name_that_is_imported_exists() -> None:
    """A room that was divided must still offer what others, in some function, take from it."""
    missing = []
    for path in [*SOURCES, *Path("stages").glob("*.py"), *Path("benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gptmill."):
                try:
                    module = importlib.import_module(node.module)
                except ModuleNotFoundError as error:
                    assert (error.name or "").split(".")[0] in OPTIONAL
                    continue
                names = {alias.name for alias in node.names if not hasattr(module, alias.name)}
                missing += [
                    f"{path}: {node.module}.{name}"
                    for name in sorted(names)
                    if not importable(f"{node.module}.{name}")
                ]
    assert not missing


RUN = """
import json, runpy, sys
runpy.run_module("stages.{}", run_name="imported")
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
print(json.dumps([file for file in files if file]))
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_python_imports_for_it(stage: str) -> None:
    """Python's own account, by its import system, against the reading of the sources."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(stage)], capture_output=True, text=True, check=True
    )
    root = Path.cwd()
    loaded = [Path(file).resolve() for file in json.loads(done.stdout)]
    ours = {file.relative_to(root) for file in loaded if root / "src" in file.parents}
    ours |= {file.relative_to(root) for file in loaded if file.parent == root / "stages"}
    decisive = {f for f in ours if room(f) not in closure.WITHOUT_EFFECT and f.stat().st_size}
    assert decisive <= set(closure.listing(stage))
    assert len(decisive) > 2 or stage == "judge", "the check must not be empty"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_listing_and_on_no_other_code(stage: str) -> None:
    definition = pipeline()[stage]
    deps = definition.get("do", definition)["deps"]
    code = [dep for dep in deps if dep.startswith(("src", "stages", "code"))]
    assert code == [f"code/{stage}.txt"]


def test_dvc_yaml_reads_well() -> None:
    """One path a line, each stage described, each published model named."""
    text = Path("dvc.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 110
    for definition in pipeline().values():
        assert definition.get("do", definition)["desc"]
    models = {entry["path"] for entry in yaml.safe_load(text)["artifacts"].values()}
    assert models == {
        "models/pretrained",
        "models/classifier",
        "models/instructions",
        "models/onnx",
    }


def test_every_script_is_a_stage_and_the_other_way_round() -> None:
    assert sorted(pipeline()) == sorted([*STAGES, closure.FOLDER.name])


UNHASHED = {"launch"}  # the result does not depend on it


def test_every_parameter_section_belongs_to_a_stage() -> None:
    from gptmill.params import Parameters

    tracked = set().union(*map(sections, pipeline()))
    assert tracked == set(Parameters.model_fields) - {"profile"} - UNHASHED


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_the_parameters_it_reads(stage: str) -> None:
    text = Path(f"stages/{stage}.py").read_text()
    read = set(re.findall(r"(?:parameters|load\(\))\.([a-z_0-9]+)", text))
    assert read - UNHASHED == sections(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_the_packages_that_decide_its_bytes(stage: str) -> None:
    """Another version of any of them must make DVC run the stage again."""
    files = closure.closure(Path(f"stages/{stage}.py"))
    names = {module.split(".")[0] for path in files for module in modules(path)}
    foreign = names - sys.stdlib_module_names - {"gptmill", "stages"} - NO_BYTES - OPTIONAL
    needed = set().union(*(PACKAGES.get(name, {name}) for name in foreign))
    tracked = tracked_packages(stage)
    assert len(tracked) == len(set(tracked))
    assert set(tracked) == needed


def test_every_recorded_version_is_tracked() -> None:
    tracked = set().union(*map(tracked_packages, pipeline()))
    assert tracked == set(read_yaml(VERSIONS_FILE))


def test_the_recorded_versions_are_the_locked_ones() -> None:
    locked = "\n".join(
        Path(f"requirements/{name}.txt").read_text() for name in ("pipeline", "torch")
    )
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", locked, re.MULTILINE))
    recorded = read_yaml(VERSIONS_FILE)
    assert {name: pins.get(name) for name in recorded} == recorded


def test_every_parameter_is_read() -> None:
    """A value nobody reads is a lie in params.yaml."""
    from gptmill.meanings import describe

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


def test_what_runs_models_needs_no_torch_and_no_onnx() -> None:
    """`runtime` and all that it imports, statically; `CLEAN` in its tests tries it."""
    files = {file for path in (PACKAGE / "runtime").glob("*.py") for file in closure.closure(path)}
    foreign = {module.split(".")[0] for file in files for module in modules(file)}
    assert "onnxruntime" in foreign
    assert not foreign & {"torch", "onnx", "transformers", "pydantic"}


def test_files_stay_short() -> None:
    paths = [*PACKAGE.rglob("*.py"), *Path("stages").glob("*.py"), Path("tools/house.py")]
    lines = {path: len(path.read_text().splitlines()) for path in paths}
    assert not {path: count for path, count in lines.items() if count > 450}


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
    assert {stage for stage in STAGES if ladder in closure.listing(stage)} <= {"study"}
