"""The two or more things that are compared: executions, revisions, experiments, the workspace."""

import re
import subprocess
import tarfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gptmill.dvc import locked_data, locked_outputs
from gptmill.errors import UserError
from gptmill.files import read_json
from gptmill.git import git
from gptmill.params import flatten
from gptmill.report.read import Results
from gptmill.tracking.history import CURVES, Record, executions, read_execution

READ = ["params.yaml", "dvc.lock", "metrics", "plots"]
WORKSPACE = "workspace"


@dataclass(frozen=True)
class Side:
    """What one reference stands for.

    `metrics` are named `<stage>/<name>` and are numbers, or texts such as the judge's backend;
    `data` and `code` name hashes; `curves` and `samples` are by `<stage>/<name>`; `answers` are
    responses by prompt, known only where the bytes are at hand.
    """

    name: str
    kind: str
    parameters: dict[str, str]
    metrics: dict[str, float | str]
    data: dict[str, str]
    code: dict[str, str]
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    samples: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)

    @property
    def code_key(self) -> str:
        """What tells two versions of the code apart."""
        names = ("code", "src/ tree", "stages/ tree", "uncommitted files")
        return " ".join(self.code.get(name, "") for name in names)


def open_side(reference: str) -> Side:
    """Find what a reference means: `workspace`, a DVC experiment or git revision, else an MLflow
    execution by its id (or the start of it), its name, or `latest`, `latest~1`, ….

    `git:` or `mlflow:` in front settles which.

    Raises:
        UserError: nothing of that name; the latest executions are listed.
    """
    place, _, name = reference.rpartition(":")
    if place not in ("", "git", "mlflow"):
        place, name = "", reference
    if name == WORKSPACE:
        return _from_folder(Path(), WORKSPACE, "workspace", _workspace_code())
    if place != "mlflow" and (revision := _experiment(name)):
        return _from_git(name, "DVC experiment", revision)
    if place != "mlflow" and (revision := git("rev-parse", "-q", "--verify", f"{name}^{{commit}}")):
        return _from_git(name, "git revision", revision)
    if place != "git":
        found = executions()
        record = _choose(found, name)
        if record:
            return _from_record(read_execution(record))
        raise UserError(f"'{reference}' is not a git revision, DVC experiment or MLflow execution"
                        + _listing(found))  # fmt: skip
    raise UserError(f"'{name}' is neither a git revision nor a DVC experiment")


def listing() -> str:
    """The latest executions, a line each, for a user to choose from."""
    return _listing(executions()).removeprefix("; the latest are:\n") or "no executions yet"


def _listing(records: list[Record]) -> str:
    if not records:
        return ""
    lines = [f"  {record.id[:8]}  {record.status:8}  {record.name}" for record in records[:15]]
    return "; the latest are:\n" + "\n".join(lines)


def _choose(records: list[Record], name: str) -> Record | None:
    latest = re.fullmatch(r"latest(?:~(\d+))?", name)
    if latest:
        place = int(latest[1] or 0)
        return records[place] if place < len(records) else None
    whole = [record for record in records if name in (record.id, record.name)]
    started = [record for record in records if len(name) >= 4 and record.id.startswith(name)]
    return next(iter(whole + started), None)


def _from_record(record: Record) -> Side:
    facts = {
        name: value
        for name, value in record.tags.items()
        if "/" in name and not name.startswith("data.")
    }
    code = {name: record.tags.get(name, "") for name in ("git_commit", "git_dirty", "code")}
    about = {name: record.tags.get(name, "") for name in ("host", "device", "threads")}
    return Side(
        f"{record.name} ({record.id[:8]})",
        "MLflow execution",
        record.parameters,
        {**record.metrics, **facts},
        record.data,
        {name: value for name, value in {**code, **about}.items() if value},
        record.curves,
        record.texts,
    )


# --- git revisions, DVC experiments, the workspace


def _experiment(name: str) -> str:
    """The commit of a DVC experiment, empty if there is none of that name."""
    for line in git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines():
        reference, commit = line.split()
        if reference.split("/")[-1] == name and len(reference.split("/")) == 5:
            return commit
    return ""


def _from_git(name: str, kind: str, commit: str) -> Side:
    """Extract what the revision holds and read it as a folder."""
    listed = git("ls-tree", "-r", "--name-only", commit, "--", *READ).splitlines()
    code = {"git_commit": commit, **_trees(commit)}
    with TemporaryDirectory() as folder:
        if listed:
            packed = subprocess.run(
                ["git", "archive", commit, "--", *listed], capture_output=True, check=True
            ).stdout
            with tarfile.open(fileobj=BytesIO(packed)) as archive:
                # Before Python 3.11.4 there are no filters; the members are git's own.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(folder)
        return _from_folder(Path(folder), name, kind, code)


def _workspace_code() -> dict[str, str]:
    dirty = git("status", "--porcelain", "--", "src", "stages", "dvc.yaml")
    code = {"git_commit": git("rev-parse", "HEAD"), **_trees("HEAD")}
    return code | ({"uncommitted files": str(len(dirty.splitlines()))} if dirty else {})


def _trees(commit: str) -> dict[str, str]:
    """Git's hashes of the code: alike in two commits that change none of it."""
    return {f"{name}/ tree": git("rev-parse", f"{commit}:{name}") for name in ("src", "stages")}


def _from_folder(root: Path, name: str, kind: str, code: dict[str, str]) -> Side:
    results = Results(root)
    metrics = {
        f"{stage}/{key}": value
        for stage, values in results.metrics.items()
        for key, value in values.items()
        if value is not None
    }
    curves, samples = {}, {}
    for folder in sorted((root / "plots").glob("*")):
        stage = folder.name
        for metric in CURVES:
            table = "evaluation" if metric.startswith("validation/") else "training"
            points = results.curve(f"plots/{stage}/{table}.csv", metric)
            if points:
                curves[f"{stage}/{metric}"] = points
        texts = results.entries(f"plots/{stage}/samples.json")
        if texts:
            samples[f"{stage}/samples"] = [(text["step"], text["text"]) for text in texts]
    parameters = {key: str(value) for key, value in flatten(results.parameters).items()}
    lock = root / "dvc.lock"
    answers = _answers(locked_outputs(lock).get("data/responses", ""))
    return Side(name, kind, parameters, metrics, locked_data(lock), code, curves, samples, answers)


def _answers(digest: str) -> dict[str, str]:
    """Responses by prompt, read from DVC's cache; empty where their bytes are not there."""
    if not digest.endswith(".dir"):
        return {}
    entries = _cached(digest)
    file = next((e["md5"] for e in entries or [] if e["relpath"] == "responses.json"), "")
    return {
        f"{entry['instruction']}\n{entry.get('input', '')}".strip(): entry["response"]
        for entry in (_cached(file) if file else None) or []
    }


def _cached(digest: str) -> Any:
    path = Path(".dvc/cache/files/md5") / digest[:2] / digest[2:]
    return read_json(path) if path.exists() else None
