"""Faults done to real commands in a clone of the project, and the table of what came of them.

The short form is part of `make test`; `make test-faults` runs the long one too and writes the table
into docs/reliability.md. GPTMILL_FAULT_RUNS says how many random moments of each kind are tried.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from gptmill.files import atomic_file, sha256_tree
from gptmill.process.leftovers import NAME
from tests.pipeline.conftest import Project, clone

RUNS = int(os.environ.get("GPTMILL_FAULT_RUNS", "2"))
PAGE = Path("docs/reliability.md")
BEGIN, END = "<!-- written by tests/faults -->", "<!-- end -->"
STAGES = {
    "download": "--dataset corpus --output data/raw/corpus",
    "tokenize": "--corpus data/raw/corpus --output data/tokens --metrics metrics/tokenize.json",
    "pretrain": "--tokens data/tokens --output models/pretrained --metrics metrics/pretrain.json "
    "--plots plots/pretrain",
    "finetune_classifier": "--foundation models/foundation/classifier --data data/classification "
    "--output models/classifier --metrics metrics/finetune_classifier.json "
    "--plots plots/finetune_classifier",
    "finetune_instructions": "--foundation models/foundation/instructions "
    "--data data/instructions --output models/instructions "
    "--metrics metrics/finetune_instructions.json --plots plots/finetune_instructions",
    "export_onnx": "--language_model models/pretrained --instructions models/instructions "
    "--classifier models/classifier --tokens data/tokens --entries data/instructions/test.json "
    "--labeled data/classification --output models/onnx --metrics metrics/export_onnx.json",
    "judge": "--responses data/responses --output data/judgements --metrics metrics/judge.json",
}


@dataclass
class Ledger:
    """What was tried, how often, and what came of it."""

    rows: dict[tuple[str, str], list[bool]] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], str] = field(default_factory=dict)

    def note(self, fault: str, command: str, outcome: str) -> None:
        """One run that came out as it should; `failed` counts the others."""
        self.rows.setdefault((fault, command), []).append(True)
        self.outcomes[fault, command] = outcome

    def table(self) -> str:
        lines = [
            "| fault | command | runs | as it should | what came out |",
            "|---|---|---|---|---|",
        ]
        for (fault, command), runs in sorted(self.rows.items()):
            outcome = self.outcomes[fault, command]
            lines.append(f"| {fault} | `{command}` | {len(runs)} | {sum(runs)} | {outcome} |")
        return "\n".join(lines)


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """Filled by the tests; written to the page at the end if all of the long form was asked for."""
    ledger = Ledger()
    yield ledger
    if os.environ.get("GPTMILL_WRITE_RELIABILITY") and not request.session.testsfailed:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        with atomic_file(PAGE) as beside:
            text = f"{before}{BEGIN}\n{ledger.table()}\n{END}{rest.partition(END)[2]}"
            beside.write_text(text, encoding="utf-8", newline="\n")


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone that has pretrained 24 steps."""
    project = clone(tmp_path_factory.mktemp("short"))
    project.set_parameters({"pretrain.training.save_every": 4})
    project.run("dvc", "repro", "pretrain")
    return project


@pytest.fixture(scope="session")
def straight(short: Project) -> dict[str, str]:
    """The hashes of what 24 steps without a fault have made."""
    return outputs_of(short, "pretrain")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone whose pipeline has run, with enough steps to be killed among."""
    project = clone(tmp_path_factory.mktemp("whole"))
    project.set_parameters({"pretrain.steps": 60, "finetune_instructions.training.save_every": 5,
                            "finetune_classifier.training.save_every": 5})  # fmt: skip
    project.run("dvc", "repro")
    (project.root / ".git/info/exclude").write_text(".site/\n")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "a run")
    return project


def stage_command(stage: str) -> tuple[str, ...]:
    return ("python", "-m", f"stages.{stage}", *STAGES[stage].split())


def outputs_of(project: Project, stage: str) -> dict[str, str]:
    """The hash of each output of a stage."""
    words = STAGES[stage].split()
    given = dict(zip(words[::2], words[1::2]))
    paths = [path for name, path in given.items() if name in ("--output", "--metrics", "--plots")]
    return {path: sha256_tree(project.root / path) for path in paths}


def last_checkpoint(project: Project, stage: str) -> int | None:
    """The step of the last checkpoint of an unfinished run."""
    names = [path.name for path in project.root.glob(f".state/{stage}/*/step-*.pt")]
    return max((int(name.split("-")[1]) for name in names), default=None)


def leftovers(project: Project) -> list[Path]:
    """Temporary files and folders of writers, wherever they are."""
    return [path for path in project.root.rglob(".*") if NAME.fullmatch(path.name)]


def stages_alive(project: Project) -> list[psutil.Process]:
    """Processes of stages that work in this project, or in a copy below it."""
    found = []
    for process in psutil.process_iter():
        try:
            command, folder = process.cmdline(), Path(process.cwd())
        except psutil.Error:
            continue
        stage = any(word.startswith("stages.") for word in command)
        if stage and (folder == project.root or project.root in folder.parents):
            found.append(process)
    return found


def wait_until(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Wait for a condition, at most two minutes and not longer than the process lives."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def stop(process: subprocess.Popen, number: int, group: bool = True) -> str:
    """Send a signal, to the group as a terminal does, and give back what was printed."""
    with contextlib.suppress(ProcessLookupError):  # it may have been quicker
        os.killpg(process.pid, number) if group else process.send_signal(number)
    return process.communicate(timeout=120)[0]


def moments(seed: str, seconds: float) -> list[float]:
    """Random moments of a command that takes so long, the same in every run of the suite."""
    generator = random.Random(seed)
    return [generator.uniform(0.1, seconds) for _ in range(RUNS)]


SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
