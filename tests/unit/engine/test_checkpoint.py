"""Checkpoints: what is damaged is not used, the one before is; what nobody goes on with goes."""

import os
import random
from pathlib import Path

import pytest
import torch

from gptmill.cli import main
from gptmill.engine import checkpoint
from gptmill.engine.checkpoint import Checkpoints, remove_unfinished
from gptmill.engine.state import TrainState
from gptmill.params import load
from tests.unit.engine.test_training import new_state

PARAMETERS = load()


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(*steps: int) -> list[Path]:
    """The files of checkpoints at steps, the first step's first."""
    torch.manual_seed(1)
    checkpoints, state = Checkpoints("pretrain", "k"), new_state()
    for step in steps:
        state.step = step
        with torch.no_grad():
            state.model.transformer.wte.weight.fill_(step)
        checkpoints.save(state)
    checkpoints._lock.release()
    return sorted(checkpoints.folder.glob("step-*"))


def loaded() -> tuple[bool, TrainState]:
    checkpoints, state = Checkpoints("pretrain", "k"), new_state()
    found = checkpoints.load(state)
    checkpoints._lock.release()
    return found, state


def test_the_last_two_are_kept() -> None:
    assert [path.name[:14] for path in saved(10, 20, 30)] == ["step-000000020", "step-000000030"]
    assert loaded()[1].step == 30


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_never_another_model(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    _, last = saved(10, 20)
    content = bytearray(last.read_bytes())
    place = random.Random(seed).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    last.write_bytes(content)
    found, state = loaded()
    assert found
    assert state.step == 10
    assert (state.model.transformer.wte.weight == 10).all()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "the checkpoint of step 20 is damaged" in told
    assert not last.exists()


@pytest.mark.parametrize("kept", [0, 1, 1000, -1])
def test_a_truncated_one_is_none(kept: int) -> None:
    first, last = saved(10, 20)
    last.write_bytes(last.read_bytes()[:kept])
    assert loaded()[1].step == 10
    first.write_bytes(first.read_bytes()[:kept])
    assert not loaded()[0]  # and the run starts anew


def test_a_kill_between_writing_and_naming_leaves_the_one_before(root: Path) -> None:
    _, last = saved(10, 20)
    last.rename(last.with_name("state.pt"))
    assert loaded()[1].step == 10


def test_unfinished_runs_of_other_parameters_go_after_a_day(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, young, held = (Checkpoints("pretrain", key) for key in ("old", "young", "held"))
    for checkpoints in (old, young, held):
        checkpoints.save(new_state())
        (checkpoints.folder / "owner").touch()
    for checkpoints in (old, young):
        checkpoints._lock.release()
    for checkpoints in (old, held):
        os.utime(checkpoints.folder, (1, 1))
    Checkpoints("pretrain", "k").close(PARAMETERS.pretrain)
    assert sorted(path.name for path in (root / ".state/pretrain").iterdir()) == [
        "held",
        "k",
        "young",
    ]
    assert "removed" in capsys.readouterr().err
    assert len(list(remove_unfinished(root / ".state/pretrain"))) == 2
    assert [path.name for path in (root / ".state/pretrain").iterdir()] == ["held"]


def test_a_finished_training_is_taken_where_only_its_measure_has_changed(root: Path) -> None:
    section = PARAMETERS.pretrain
    (last,) = saved(10)
    checkpoints, state = Checkpoints("pretrain", "k"), new_state()
    assert checkpoints.load(state)
    state.curves = {"samples": [{"step": 10, "text": "Once"}]}
    checkpoints.finish(state)
    assert last.exists()  # a kill before the figures are published goes on from it
    checkpoints.close(section)
    assert [path.suffix for path in sorted(checkpoints.folder.glob("*.*"))] == [".pt", ".json"]

    def taken(**changed: object) -> tuple[bool, TrainState]:
        checkpoints, state = Checkpoints("pretrain", "k"), new_state()
        found = checkpoints.load_finished(state, section.model_copy(update=changed))
        checkpoints._lock.release()
        return found, state

    assert not taken()[0]  # asked for again: trained again
    found, measured = taken(evaluation_stride=1)
    assert found
    assert (measured.step, measured.run_id) == (10, "")
    assert (measured.model.transformer.wte.weight == 10).all()
    assert measured.curves == state.curves
    assert taken(prompt="One day")[1].curves == {}

    other = Checkpoints("pretrain", "other")
    other.finish(new_state())
    other.close(section)  # of a stage the last finished training is kept
    assert [path.name for path in (root / ".state/pretrain").iterdir()] == ["other"]


def test_doctor_cleans_what_kills_left(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(10, 20)
    left = root / "plots/.pretrain.999999999.abcd1234.unfinished"
    left.mkdir(parents=True)
    (root / "models/pretrained").mkdir(parents=True)
    rejected = root / ".state/downloads/aa.rejected"
    rejected.parent.mkdir()
    rejected.touch()
    main(["doctor", "--clean"])
    told = capsys.readouterr().out
    assert told.count("removed") == 3
    assert not left.exists()
    assert not rejected.exists()
    assert list((root / ".state/pretrain").iterdir()) == []
    assert (root / "models/pretrained").exists()
    main(["doctor", "--clean"])
    assert capsys.readouterr().out == "nothing to clean\n"


def test_the_hash_is_that_of_the_file() -> None:
    for path in saved(10):
        assert checkpoint.NAME.fullmatch(path.name)[3] == checkpoint.sha256(path)
