"""What happens to a record when something breaks: nothing is lost, nothing holds up the rest."""

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptmill.errors import UserError
from gptmill.tracking import Stage, replay, serve_ui, tracking_address
from gptmill.tracking.address import require_answer
from gptmill.tracking.execution import STUDY, Execution, current_execution
from gptmill.tracking.journal import Journal, journal_folder
from gptmill.tracking.registry import REFERENCE, _reference
from tests.unit.tracking.conftest import (
    children,
    client,
    free_port,
    parents,
    start_stage,
    wait_for,
)


def abandon(stage: Stage) -> None:
    """Leave a stage as a kill does: what was delivered stays, and there is no end."""
    stage._courier.stop()
    stage._courier._deliver()
    stage._journal.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_an_execution_is_closed_when_its_killed_run_goes_on_in_another(root: Path) -> None:
    run = None
    for number in range(3):
        execution = Execution(f"execution{number}", f"run {number}", 1_700_000_000_000 + number)
        stage = Stage("pretrain", {"steps": 3}, resume_run=run, execution=execution)
        stage.__enter__()
        run = stage.run_id
        stage.log(number, {"train/loss": 3.0 - number})
        if number < 2:
            abandon(stage)
    wait_for(lambda: len(parents()) == 3 and parents()[1].info.status == "KILLED")
    assert {p.info.run_name: p.info.status for p in parents()} == {
        "run 0": "KILLED", "run 1": "KILLED", "run 2": "RUNNING",
    }  # fmt: skip
    stage.__exit__(None, None, None)
    (child,) = children()
    assert child.info.status == "FINISHED"
    last = next(p for p in parents() if p.info.run_name == "run 2")
    assert last.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == last.info.run_id
    curve = client().get_metric_history(child.info.run_id, "train/loss")
    assert [(p.step, p.value) for p in curve] == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_a_run_resumed_at_its_last_step_ends_there(root: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Stage("pretrain", {}) as first:
        first.log(40, {"train/loss": 2.0})
        raise KeyboardInterrupt
    with Stage("pretrain", {}, resume_run=first.run_id) as second:
        second.metrics({"validation/loss": 1.9})
    (child,) = children()
    (point,) = client().get_metric_history(child.info.run_id, "validation/loss")
    assert (point.step, point.value) == (40, 1.9)


def test_one_bad_journal_keeps_no_other_from_going(
    root: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt), Stage("pretrain", {}) as stage:
        stage.log(1, {"train/loss": 2.0})
        raise KeyboardInterrupt
    good = journal_folder() / f"{stage.run_id}.jsonl"
    lines = good.read_bytes().splitlines(keepends=True)
    (journal_folder() / f"{stage.run_id}.sent").write_text("{")  # as a crash of the machine may
    bad = {
        "aa": b"\x00" * 4096,
        "ab": b"".join(lines[1:]),  # without its start
        "ac": b'[1, 2]\n"text"\n' + b"".join(lines[2:]),
        "ad": lines[0].replace(b'"stage": "pretrain"', b'"stage": "pretrXin"'),  # a flipped bit
        "ae": b'{"kind": "start", "time": 1}\n',
    }
    for name, content in bad.items():
        (journal_folder() / f"{name}.jsonl").write_bytes(content)
        Path(journal_folder() / f"{name}.sent").write_text('{"offset": -3, "ended": "x"}')
    (root / "mlflow.db").unlink()  # so that the good one has to go again
    script = "from gptmill.tracking import replay; print(replay())"
    replayed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert replayed.stdout == "1\n"
    for name in bad:
        assert f"{name}.jsonl" in replayed.stderr
    curve = sqlite3.connect(root / "mlflow.db").execute("SELECT value FROM metrics WHERE key = ?",
                                                        ["train/loss"])  # fmt: skip
    assert curve.fetchall() == [(2.0,)]
    aside = {path.stem for path in (journal_folder() / "damaged").iterdir()}
    assert aside == {"aa", "ab", "ac", "ad"}, "what tells no run is kept, out of the way"
    assert (journal_folder() / "damaged/ab.jsonl").read_bytes() == bad["ab"]


def test_a_damaged_line_is_not_believed(root: Path) -> None:
    journal = Journal("a")
    journal.append({"kind": "points", "step": 1, "values": {"loss": 1.5}})
    journal.append({"kind": "points", "step": 2, "values": {"loss": 2.5}})
    journal.path.write_bytes(journal.path.read_bytes().replace(b"1.5", b"7.5"))
    assert [event["step"] for _, event in journal.events()] == [2]
    journal.close()


def damage(path: Path) -> None:
    """Zeros over the middle of a database, whose first page stays as it is."""
    content = bytearray(path.read_bytes())
    content[4096 : len(content) // 2] = bytes(len(content) // 2 - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["no database", "pages"])
def test_a_damaged_database_is_said_and_loses_no_run(
    kind: str,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database = root / "mlflow.db"
    damage(database) if kind == "pages" else database.write_bytes(b"no database" * 999)
    with Stage("pretrain", {}) as stage:
        stage.log(1, {"train/loss": 2.0})
    assert f"this run waits in {stage._journal.path}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"mlflow.db is damaged .*: move it away.*\.recover"):
        serve_ui(free_port())
    database.rename(root / "mlflow.db.damaged")
    assert replay() == 1
    assert children()[0].data.metrics["train/loss"] == 2.0


def locked(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def test_a_kill_while_the_database_is_made(root: Path) -> None:
    database = root / "mlflow.db"
    database.unlink()
    script = "from gptmill.tracking.delivery import Delivery; Delivery({!r})"
    command = [sys.executable, "-c", script.format(tracking_address())]
    process = subprocess.Popen(command)
    wait_for(lambda: any(p.stat().st_size for p in root.glob(".mlflow.db.*.unfinished")), 60)
    process.kill()
    process.wait()
    assert not database.exists() or not database.stat().st_size
    subprocess.run(command, check=True)
    assert client().search_experiments()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("sqlite:///{root}/mlflow.db", "mlflow.db cannot be used: database is locked"),
        ("sqlite:///{root}/folder", "folder cannot be used: unable to open database file"),
        ("sqlite:///{root}/params.yaml/mlflow.db", "cannot be used: "),
        ("postgresql://me:secret@127.0.0.1:{port}/runs", "postgresql://127.0.0.1:"),
        ("http://me:secret@127.0.0.1:{port}", "http://127.0.0.1:"),
    ],
)
def test_a_store_that_cannot_be_used_is_known_before_mlflow_tries(
    address: str,
    reason: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MLflow's own attempts at a database take 100 s; whatever the stage, none is begun."""
    (root / "folder").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(root=root, port=free_port()))
    with closing(sqlite3.connect(root / "mlflow.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with Stage("pretrain", {}) as stage:
            pass
        assert stage._courier.delivery is None
        assert reason in stage._courier.fault
        assert "secret" not in stage._courier.fault
        with pytest.raises(ConnectionError):
            require_answer(tracking_address())
        assert stage._journal.path.exists()


def test_mlflow_gives_a_database_up_quickly(root: Path) -> None:
    """Where a database breaks between our look and MLflow's."""
    from mlflow.store.db import utils

    from gptmill.tracking.delivery import Delivery

    Delivery(tracking_address())
    waits = [0.1 * (2**attempt - 1) for attempt in range(1, utils.MAX_RETRY_COUNT)]
    assert sum(waits) < 1


def test_a_journal_is_free_when_its_process_dies(root: Path) -> None:
    process = start_stage("print('in', flush=True); time.sleep(60)")
    process.stdout.readline()
    run = next(journal_folder().glob("*.jsonl")).stem
    with pytest.raises(BlockingIOError):
        Journal(run, wait=0)
    process.kill()
    process.wait()
    Journal(run, wait=0).close()


def test_a_process_that_waits_for_a_journal_gets_a_new_one_when_it_was_delivered(
    root: Path,
) -> None:
    first = Journal("a")
    script = (
        "from gptmill.tracking.journal import Journal\nprint('up', flush=True)\n"
        "journal = Journal('a')\njournal.append({'kind': 'start'})\njournal.close()"
    )
    waiting = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert waiting.stdout.readline() == "up\n"
    first.remove()
    first.close()
    assert waiting.wait(60) == 0
    assert json.loads(first.path.read_text().split("\t")[0])["kind"] == "start"
    again = Journal("a", wait=0)
    again.remove()
    again.close()
    assert list(journal_folder().iterdir()) == [], "no lock file is left"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"id": 1}', "[" * 3000])
def test_a_study_that_the_environment_names_wrongly_is_an_error(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STUDY, text or " ")
    with pytest.raises(UserError, match=f"the environment variable {STUDY}"):
        current_execution("run", "default", 0)


@pytest.mark.parametrize("text", ["", "[]", '{"task": "sing", "path": "a", "files": {}}'])
def test_a_version_whose_tag_was_edited_is_named(text: str) -> None:
    version = SimpleNamespace(tags={REFERENCE: text})
    with pytest.raises(UserError, match="its tag"):
        _reference(None, version)
