"""A stage publishes only what the parameters and inputs it began with have made, and alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gptmill import closure
from gptmill.dvc import tracked
from gptmill.errors import UserError
from gptmill.files import atomic_folder, write_json
from gptmill.process import outputs
from gptmill.process.outputs import OUTPUTS, OutputLock, claimed

PARAMS = "pretrain:\n  steps: 420 # many\nruntime: {seed: 1}\njudge: {model: a}\n"
PIPELINE = """stages:
  pretrain:
    deps: [code, data/tokens]
    params: [pretrain, runtime, {versions.yaml: [torch]}, {versions.yaml: [numpy], other.yaml: }]
  download:
    foreach: [corpus, classification]
    do:
      deps: [data]
      params: ["download.${item}"]
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    Path("params.yaml").write_text(PARAMS)
    Path("dvc.yaml").write_text(PIPELINE)
    Path("versions.yaml").write_text("torch: '2.13'\nnumpy: '2.4'\ndvc: '3.67'\n")
    Path("other.yaml").write_text("a: {b: 1}\n")
    for folder in ("data/tokens", "code", "elsewhere"):
        Path(folder).mkdir(parents=True)
        Path(folder, "part").write_text("1 2 3")
    Path("code/model.py").write_text("layers = 1\n")
    return tmp_path


ARGUMENTS = {
    "tokens": Path("elsewhere"),
    "output": Path("models/pretrained"),
    "metrics": Path("metrics/pretrain.json"),
}


def edit(name: str, before: str, after: str) -> None:
    path = Path(name)
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("params.yaml", "steps: 420", "steps: 60", r"params\.yaml, pretrain\.steps"),
        ("params.yaml", "seed: 1", "seed: 2", r"params\.yaml, runtime\.seed"),
        ("params.yaml", "pretrain", "pretrained", r"params\.yaml, pretrain"),
        ("params.yaml", "pretrain:", "pretrain: [", r"params\.yaml, pretrain"),
        ("versions.yaml", "2.13", "2.14", r"versions\.yaml, torch"),
        ("versions.yaml", "2.4", "2.5", r"versions\.yaml, numpy"),
        ("other.yaml", "1", "2", r"other\.yaml, a\.b"),
        ("data/tokens/part", "1 2 3", "1 2 3 4", "data/tokens/part"),
        ("elsewhere/part", "1 2 3", "1 2 3 4", "elsewhere/part"),
        ("code/model.py", "layers = 1", "layers = 2", r"code/model\.py"),
    ],
)
def test_what_changed_meanwhile_is_not_published(
    name: str, before: str, after: str, told: str
) -> None:
    write_json(Path("metrics/pretrain.json"), {"loss": 1})
    with (
        pytest.raises(UserError, match=f"changed while the stage ran: {told}"),
        claimed("pretrain", ARGUMENTS),
        atomic_folder(Path("models/pretrained")) as folder,
    ):
        (folder / "weights").write_text("of 420 steps")
        edit(name, before, after)
    assert list(Path("models").iterdir()) == []
    assert Path("metrics/pretrain.json").read_text() == '{\n  "loss": 1\n}\n'


def test_a_change_after_the_last_output_fails_the_stage_too() -> None:
    """DVC reads parameters and inputs when the stage has ended, not when it published."""
    with pytest.raises(UserError, match=r"pretrain\.steps"), claimed("pretrain", ARGUMENTS):
        write_json(Path("metrics/pretrain.json"), {"loss": 1})
        edit("params.yaml", "420", "60")


def test_changes_that_dvc_does_not_record_are_none_of_a_stages_business() -> None:
    with claimed("pretrain", ARGUMENTS):
        edit("params.yaml", "{model: a}", "{model: b}")
        edit("params.yaml", "# many", "# a comment")
        edit("versions.yaml", "3.67", "3.68")
        os.utime("code/model.py", (1, 1))  # as git leaves it when it comes back to a branch
        Path("code/__pycache__").mkdir()
        Path("code/__pycache__/model.pyc").touch()
        write_json(Path("metrics/pretrain.json"), {"loss": 1})
    assert Path("metrics/pretrain.json").exists()


@pytest.fixture
def listed(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The code of the stage is known to DVC by its listing."""
    edit("dvc.yaml", "deps: [code, ", "deps: [code/pretrain.txt, ")
    for name in (
        "stages/__init__.py",
        "stages/pretrain.py",
        "src/gptmill/model.py",
        "src/gptmill/idle.py",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("from gptmill import model\n")
    closure.modules.cache_clear()
    closure.write_listings(Path("code"))
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    return Path("code/pretrain.txt")


def test_the_code_that_a_listing_names_is_guarded(listed: Path) -> None:
    with (
        pytest.raises(UserError, match=r"changed while the stage ran: src/gptmill/model\.py"),
        claimed("pretrain", ARGUMENTS),
    ):
        edit("src/gptmill/idle.py", "model", "other")  # which the stage does not import
        write_json(Path("metrics/pretrain.json"), {})
        edit("src/gptmill/model.py", "model", "other")
        write_json(Path("metrics/pretrain.json"), {"loss": 2})
    assert Path("metrics/pretrain.json").read_text() == "{}\n"


def test_a_listing_of_other_code_is_refused_before_any_work(
    listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edited after the stage `code` ran: dvc.lock would name the listing of the code before."""
    edit("src/gptmill/model.py", "model", "other")
    with (
        pytest.raises(
            UserError, match=r"src/gptmill/model\.py is not as code/pretrain\.txt has it"
        ),
        claimed("pretrain", ARGUMENTS),
    ):
        pytest.fail("the stage began")
    monkeypatch.delenv("DVC_STAGE")  # run by hand, nothing is recorded
    with claimed("pretrain", ARGUMENTS):
        write_json(Path("metrics/pretrain.json"), {})


def test_state_and_timings_are_written_whatever_changed() -> None:
    with pytest.raises(UserError), claimed("pretrain", ARGUMENTS):
        edit("params.yaml", "420", "60")
        write_json(Path(".state/pretrain/x.json"), {})
    assert Path(".state/pretrain/x.json").exists()


def test_a_lock_that_was_taken_away_is_noticed() -> None:
    with (
        pytest.raises(UserError, match=r"the lock on models/pretrained was taken away"),
        claimed("pretrain", ARGUMENTS),
    ):
        for owner in Path(".state/locks").glob("pretrained-*.owner"):
            owner.unlink()
        write_json(Path("metrics/pretrain.json"), {})


def test_two_processes_do_not_write_one_output(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from pathlib import Path\nfrom gptmill.process.outputs import OutputLock\n"
        "with OutputLock(Path('models/pretrained'), 'pretrain'):\n"
        "    print('held', flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    monkeypatch.setattr(outputs, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(outputs, "WAIT_SECONDS", 0.1)
    told = rf"process {child.pid}, pretrain\) is writing models/pretrained"
    with pytest.raises(UserError, match=told), claimed("pretrain", ARGUMENTS):
        pass
    child.kill()  # a lock does not outlive its process
    child.wait()
    with claimed("pretrain", ARGUMENTS):
        pass


def test_a_copy_of_the_project_has_locks_of_its_own(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc exp run --temp`: another working directory, the same DVC_ROOT."""
    copy = project / ".dvc/tmp/exps/abc"
    copy.mkdir(parents=True)
    with OutputLock(Path("models/pretrained"), "pretrain"):
        monkeypatch.setenv("DVC_ROOT", str(project))
        monkeypatch.chdir(copy)
        monkeypatch.setattr(outputs, "WAIT_SECONDS", 0.0)
        with OutputLock(Path("models/pretrained"), "pretrain"):
            assert len(list((project / ".state/locks").glob("*.owner"))) == 2


def test_the_item_of_a_stage_is_known_from_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = Path("params.yaml")
    assert tracked("download") == ([Path("data")], {parameters: ["download"]})
    monkeypatch.setenv("DVC_STAGE", "download@classification")
    assert tracked("download") == ([Path("data")], {parameters: ["download.classification"]})
    assert tracked("unknown") == ([], {parameters: None})


def test_arguments_that_name_outputs_are_dvcs_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage of the real pipeline: what it locks and guards is what DVC takes from it."""
    root = Path(__file__).parents[3]
    for name, definition in yaml.safe_load((root / "dvc.yaml").read_text())["stages"].items():
        definition = definition.get("do", definition)
        given = dict(re.findall(r"--(\w+) (\S+)", definition["cmd"]))
        declared = definition.get("outs", []) + definition.get("metrics", [])
        paths = [path if isinstance(path, str) else next(iter(path)) for path in declared]
        claimed_paths = [path for argument, path in given.items() if argument in OUTPUTS]
        # The report's page shows times and is no hashed output.
        assert sorted({*claimed_paths} - {"report/index.html"}) == sorted(paths), name
