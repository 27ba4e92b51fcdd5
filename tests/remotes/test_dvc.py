"""What the pipeline made, on a remote: a folder and S3; a colleague's clone computes nothing."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from gptmill.files import sha256_tree
from tests.pipeline.conftest import Project
from tests.remotes.conftest import Store, commit, dvc, second_clone

pytestmark = pytest.mark.remotes

MODELS = ["pretrained", "classifier", "instructions", "onnx"]


def ran(printed: str) -> list[str]:
    """The stages that computed."""
    return re.findall(r"Running stage '([^']+)'", printed)


def cached(project: Project) -> set[str]:
    """The files of a cache or of a remote's folder, by hash."""
    return {path.name for path in project.root.glob(".dvc/cache/files/md5/*/*")}


@pytest.fixture
def owner(made: Project, tmp_path: Path) -> Project:
    """A copy of it that a test may change."""
    project = second_clone(made, tmp_path / "owner")
    shutil.copytree(made.root / ".dvc/cache", project.root / ".dvc/cache")
    dvc(project, "checkout")
    return project


@pytest.fixture(params=["folder", "s3"])
def pushed(request, owner: Project, tmp_path: Path) -> Project:
    """The project with a remote, to which all was pushed, as docs/remotes.md has it."""
    if request.param == "folder":
        dvc(owner, "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    else:
        store: Store = request.getfixturevalue("s3")
        address = store.bucket(f"team-{tmp_path.name.strip('_').replace('_', '-')}"[:60])
        dvc(owner, "remote", "add", "--default", "storage", f"{address}/gptmill")
        dvc(owner, "remote", "modify", "storage", "endpointurl", store.address)
    commit(owner, "a remote")
    assert "pushed" in dvc(owner, "push", "--run-cache")
    return owner


def test_a_second_clone_computes_nothing(pushed: Project, tmp_path: Path) -> None:
    other = second_clone(pushed, tmp_path / "colleague")
    assert not cached(other)
    dvc(other, "pull", "--run-cache")
    lock = (other.root / "dvc.lock").read_bytes()
    assert set(ran(dvc(other, "repro"))) <= {"report"}  # a page, which is not DVC's
    assert (other.root / "dvc.lock").read_bytes() == lock
    for name in MODELS:
        path = Path("models", name)
        assert sha256_tree(other.root / path) == sha256_tree(pushed.root / path), name
    assert (other.root / "report/index.html").exists()
    assert "up to date" in dvc(other, "repro")


def test_what_the_runs_cache_gives_beyond_dvc_lock(pushed: Project, tmp_path: Path) -> None:
    """What a colleague tried and did not commit: a stage that has no metrics is restored. Of the
    others DVC 3.67 pushes all but the metrics' bytes, which git has not either: they compute."""
    stages = {
        "download@instructions": {"download.instructions.seed": 4},
        "prepare_classification": {"prepare_classification.train_fraction": 0.6},
    }
    for stage, values in stages.items():
        pushed.set_parameters(values)
        assert ran(dvc(pushed, "repro", "--single-item", stage)) == [stage]
        dvc(pushed, "push", "--run-cache")
        pushed.run("git", "checkout", "--", ".")
        dvc(pushed, "checkout")
    other = second_clone(pushed, tmp_path / "colleague")
    dvc(other, "pull", "--run-cache")
    computed = []
    for stage, values in stages.items():
        other.set_parameters(values)
        computed += ran(dvc(other, "repro", "--pull", "--single-item", stage))
    assert computed == ["prepare_classification"]


def test_status_of_the_data(pushed: Project) -> None:
    (pushed.root / "models/classifier/README.md").write_text("by hand")
    changed = json.loads(dvc(pushed, "data", "status", "--json", "--granular"))
    assert "models/classifier/README.md" in json.dumps(changed["uncommitted"])
    dvc(pushed, "checkout", "--force", "models/classifier")
    assert "uncommitted" not in json.loads(dvc(pushed, "data", "status", "--json"))


def test_a_frozen_stage_stays_as_it_is(owner: Project) -> None:
    dvc(owner, "freeze", "pretrain")
    assert "frozen: true" in (owner.root / "dvc.yaml").read_text()
    owner.set_parameters({"pretrain.steps": 30})
    said = dvc(owner, "status", "pretrain")
    assert "frozen" in said and "up to date" in said
    assert "pretrain" not in ran(dvc(owner, "repro", "pretrain"))
    dvc(owner, "unfreeze", "pretrain")
    assert "pretrain" in json.loads(dvc(owner, "status", "--json", "pretrain"))


def test_experiments_travel_and_gc_keeps_them_if_told(pushed: Project, tmp_path: Path) -> None:
    bare = tmp_path / "server.git"
    pushed.run("git", "init", "-q", "--bare", str(bare))
    pushed.run("git", "remote", "set-url", "origin", str(bare))
    pushed.run("git", "push", "-q", "origin", "HEAD:main")
    pushed.run("git", "-C", str(bare), "symbolic-ref", "HEAD", "refs/heads/main")
    change = "prepare_classification.train_fraction=0.6"
    dvc(pushed, "exp", "run", "--name", "less", "-S", change, "prepare_classification")
    result = sha256_tree(pushed.root / "data/classification")
    pushed.run("git", "checkout", "--", ".")
    dvc(pushed, "checkout")
    assert sha256_tree(pushed.root / "data/classification") != result
    dvc(pushed, "exp", "push", "origin", "less")

    other = second_clone(Project(bare), tmp_path / "colleague")
    assert "less" in dvc(other, "exp", "list", "origin")
    dvc(other, "exp", "pull", "origin", "less")
    dvc(other, "exp", "apply", "less")
    assert sha256_tree(other.root / "data/classification") == result
    assert "train_fraction: 0.6" in (other.root / "params.yaml").read_text()

    every = ["--all-branches", "--all-tags", "--all-experiments"]
    dvc(pushed, "gc", *every, "--cloud", "--force")
    third = second_clone(Project(bare), tmp_path / "third")
    dvc(third, "exp", "pull", "origin", "less")
    dvc(pushed, "gc", "--workspace", "--cloud", "--force")
    fourth = second_clone(Project(bare), tmp_path / "fourth")
    assert "missing" in dvc(fourth, "exp", "pull", "origin", "less", check=False).lower()


def test_the_workflow_takes_and_leaves_results(
    owner: Project, s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of its job `remote`: on an empty bucket, and on what the first run left."""
    jobs = yaml.safe_load(Path(".github/workflows/ci.yml").read_text())["jobs"]
    steps = jobs["remote"]["steps"]
    assert all("env.DVC_REMOTE != ''" in step["if"] for step in steps)
    monkeypatch.setenv("DVC_REMOTE", f"{s3.bucket('workflow')}/gptmill")
    monkeypatch.setenv("DVC_REMOTE_ENDPOINT", s3.address)
    for name in ("first", "second"):
        runner = second_clone(owner, tmp_path / name)
        tools = runner.root / ".venv/bin"
        tools.mkdir(parents=True)
        for tool, script in (("make", "true"), ("dvc", f'exec {sys.executable} -m dvc "$@"')):
            (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
            (tools / tool).chmod(0o755)
        runner.environment["PATH"] = f"{tools}:{runner.environment['PATH']}"
        if name == "first":  # it has computed all, so to speak
            shutil.copytree(owner.root / ".dvc/cache", runner.root / ".dvc/cache")
        printed = [runner.run("bash", "-e", "-c", step["run"]) for step in steps if "run" in step]
        assert set(ran("".join(done.stdout for done in printed))) <= {"report"}
        assert s3.objects("workflow")
