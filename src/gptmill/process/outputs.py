"""A stage owns its outputs while it runs, and publishes what its parameters and inputs made.

DVC reads params.yaml and the inputs once more when a stage ends, and writes what it then finds into
dvc.lock. So a stage compares them with what it began with just before each output is published, and
when it is done: what changed on the way is an error, and no record that is wrong.
"""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gptmill import closure
from gptmill.dvc import tracked
from gptmill.errors import UserError
from gptmill.files import atomic_file, before_publishing, sha256, state_root
from gptmill.params import read_yaml
from gptmill.process.leftovers import clear_beside
from gptmill.process.parent import GRACE_SECONDS

# Arguments of a stage that name what it writes.
OUTPUTS = ("output", "metrics", "plots", "page", "summary")
ASK_SECONDS = 1.0  # after which a wait is worth a line
WAIT_SECONDS = GRACE_SECONDS + 10.0  # a stage whose `dvc` was killed is gone by then


@contextmanager
def claimed(stage: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Hold the outputs among a stage's arguments, and check what is published in the block.

    Raises:
        UserError: another process writes an output; parameters, inputs or a lock are no longer
            those that the stage began with.
    """
    outputs = [value for name, value in arguments.items() if name in OUTPUTS]
    given = [v for n, v in arguments.items() if isinstance(v, Path) and n not in OUTPUTS]
    with ExitStack() as stack:
        locks = [stack.enter_context(OutputLock(path, stage)) for path in sorted(outputs)]
        for path in outputs:
            clear_beside(path)
        beginning = Beginning(stage, given)

        def check(path: Path) -> None:
            if any(output == path or output in path.parents for output in outputs):
                beginning.require()
                for lock in locks:
                    lock.require()

        before_publishing.append(check)
        stack.callback(before_publishing.remove, check)
        yield
        beginning.require()


class OutputLock:
    """The right to write one output, for one process at a time.

    The lock lies in the project's `.state/locks` under the output's absolute path, so that
    experiments in temporary copies do not wait for the workspace.
    """

    def __init__(self, path: Path, stage: str) -> None:
        place = str(path.resolve())
        name = f"{path.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}"
        self.path = path
        self._owner = state_root() / "locks" / f"{name}.owner"
        self._lock = FileLock(self._owner.with_suffix(".lock"))
        self._mine = f"process {os.getpid()}, {stage}\n{uuid.uuid4().hex}\n"

    def __enter__(self) -> "OutputLock":
        self._owner.parent.mkdir(parents=True, exist_ok=True)
        if not self._acquired(ASK_SECONDS):
            print(f"waiting for {self.holder()}, which writes {self.path}", flush=True)
            if not self._acquired(WAIT_SECONDS):
                raise UserError(
                    f"another process ({self.holder()}) is writing {self.path}: wait for it to "
                    "finish, or stop it, and run again"
                )
        with atomic_file(self._owner) as temporary:
            temporary.write_text(self._mine, encoding="utf-8", newline="\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._read() == self._mine:
            self._owner.unlink()
        self._lock.release()

    def require(self) -> None:
        """Raise a `UserError` unless the lock is still this process's."""
        if self._read() != self._mine:
            raise UserError(
                f"the lock on {self.path} was taken away (it is held by {self.holder()}): nothing "
                "is published. Leave .state alone while a stage runs, and run again"
            )

    def holder(self) -> str:
        """Who holds it, for a message."""
        return self._read().partition("\n")[0] or "nobody that is known"

    def _read(self) -> str:
        try:
            return self._owner.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _acquired(self, seconds: float) -> bool:
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        return True


class Beginning:
    """Parameters and inputs as a stage found them: those that dvc.lock will name for it."""

    def __init__(self, stage: str, inputs: Iterable[Path]) -> None:
        deps, self._tracked = tracked(stage)
        code = [file for dep in deps if dep.parent == closure.FOLDER for file in _code(dep)]
        self._inputs = sorted({*inputs, *deps, *code})
        self._parameters = self._read_parameters()
        self._files = self._read_files()

    def require(self) -> None:
        """Raise a `UserError` that says what has changed, if something has."""
        parameters, files = self._read_parameters(), self._read_files()
        changed = _differing(self._parameters, parameters) + _differing(self._files, files)
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(
                f"changed while the stage ran: {'; '.join(changed[:3])}{more}. dvc.lock would name "
                "that for what something else has made, so nothing is published. Run again; put "
                "the change back first if this very run is wanted: its checkpoints are kept"
            )

    def _read_parameters(self) -> dict[str, Any]:
        """Leaves of what is tracked of each file of parameters."""
        found = {}
        for file, names in self._tracked.items():
            try:
                values = read_yaml(file)
            except UserError:
                continue
            tracked = values if names is None else {name: _at(values, name) for name in names}
            found |= {f"{file}, {name}": value for name, value in _leaves(tracked)}
        return found

    def _read_files(self) -> dict[str, str]:
        files = (file for path in self._inputs for file in _files(path))
        return {str(file): _fingerprint(file) for file in files}


def _code(listing: Path) -> list[Path]:
    """The files of the code that a listing stands for, as they are.

    Raises:
        UserError: DVC runs the stage and will record a listing that names other code.
    """
    present = {str(file): digest for file, digest in closure.listing(listing.stem).items()}
    if os.environ.get("DVC_STAGE") and listing.exists():
        listed = {str(file): digest for file, digest in closure.read_listing(listing).items()}
        if changed := _differing(listed, present):
            raise UserError(
                f"{changed[0]} is not as {listing} has it, which dvc.lock would name: run "
                "`dvc repro` again (after `--single-item`, without it), which lists the code anew"
            )
    return [Path(file) for file in present]


def _differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names whose values differ, or that are in one of the two."""
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name) != after.get(name)]


def _at(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(values, dict):
        yield prefix, values
        return
    for name, value in values.items():
        yield from _leaves(value, f"{prefix}.{name}" if prefix else name)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (f for f in path.rglob("*") if f.is_file() and "__pycache__" not in f.parts)


def _fingerprint(file: Path) -> str:
    """Code by content, which git puts back with another time; data, which are large, by time."""
    try:
        if file.suffix == ".py":
            return sha256(file)
        about = file.stat()
    except FileNotFoundError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"
