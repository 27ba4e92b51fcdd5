"""Delivery beside and after the stages: in the background, at a stage's end, or by `replay`.

To import mlflow and open a store takes some three seconds of processor time, more than most of the
pipeline's stages, beside which they would run. To a local database, where `make ui` and
`gptmill compare` send what waits, a stage that `dvc` started therefore delivers only once it has
worked for a minute, if it fails, or if it sums up its execution, which is the last stage's task; it
then sends what the others left as well.
"""

import sys
import threading
from typing import Any

from gptmill.errors import without_credentials
from gptmill.tracking.address import (
    as_noted,
    is_server,
    own_database,
    require_answer,
    tracking_address,
)
from gptmill.tracking.execution import nearest_dvc
from gptmill.tracking.journal import DamagedJournal, Journal, ownerless_journals
from gptmill.tracking.machine import Machine

SAMPLE_SECONDS = 5.0
DELIVER_SECONDS = 30.0
LONG_SECONDS = 60.0  # of a pipeline's stage, before its first delivery


class Courier(threading.Thread):
    """Samples the machine and delivers the journal every now and then, beside the stage.

    It imports mlflow while the stage works. It never fails a stage: what cannot be delivered
    stays in the journal.
    """

    def __init__(self, journal: Journal, machine: Machine, seconds_before: float) -> None:
        super().__init__(daemon=True)
        self.journal = journal
        self.machine = machine
        self.seconds = seconds_before
        self.address = tracking_address()
        self.delivery: Any = None
        self.fault = ""
        self._pipeline = nearest_dvc() is not None and not is_server(self.address)
        self._stopped = threading.Event()
        self._delivering = threading.Lock()

    def run(self) -> None:
        self._sample()
        worked, due = 0.0, LONG_SECONDS if self._pipeline else 0.0
        while True:
            if worked >= due:
                self.deliver()
                due = worked + DELIVER_SECONDS
            if self._stopped.wait(SAMPLE_SECONDS):
                return
            worked += SAMPLE_SECONDS
            self.seconds += SAMPLE_SECONDS
            self._sample()

    def _sample(self) -> None:
        values = self.machine.sample()
        self.journal.append({"kind": "points", "step": int(self.seconds), "values": values})

    def stop(self) -> None:
        """End the thread; a delivery under way is let finish."""
        self._stopped.set()
        self.join()

    def deliver_last(self) -> None:
        """Deliver the end, unless the server was silent a moment ago, and say what waits.

        A quick stage of a pipeline leaves it to a later one.
        """
        if self._pipeline and not self.delivery and not self.fault and not self._must_deliver():
            return
        if not self.fault:
            self.deliver()
        if self.fault:
            print(
                f"tracking: {self.fault}; this run waits in {self.journal.path}: "
                "`gptmill track replay` sends it",
                file=sys.stderr,
            )

    def _must_deliver(self) -> bool:
        """Whether the run has failed, or sums up its execution."""
        events = [event for _, event in self.journal.events()]
        last = [event for event in events if event["kind"] == "end"][-1]
        return last["status"] != "FINISHED" or any(e["kind"] == "execution" for e in events)

    def deliver(self) -> None:
        """Deliver the journal, and over a new connection those that wait."""
        with self._delivering:
            connected = self.delivery is not None
            self._deliver()
            if not connected:
                self._deliver_waiting()

    def _deliver(self) -> None:
        self.fault = ""
        try:
            require_answer(self.address)
            self.delivery = self.delivery or _connect(self.address)
            self.delivery.deliver(self.journal)
        except Exception as error:  # tracking mirrors a stage and must not end it
            self.fault = _fault(error)

    def _deliver_waiting(self) -> None:
        """Close and send what quick stages, killed processes and silent servers left behind; a
        stage by itself is not held by that when its work is done."""
        if self.delivery is None:
            return
        for journal in ownerless_journals():
            if self._stopped.is_set() and not self._pipeline:
                return
            try:
                _finish(journal, self.address, self.delivery)
            except Exception as error:
                _say(journal, error)


def replay() -> int:
    """Close runs whose process is gone and send every journal that waits; the number of runs sent.

    Each goes to the address it was meant for. One that cannot be sent is said so and kept, and
    keeps no other from going.
    """
    connections: dict[str, Any] = {}
    silent: set[str] = set()
    sent = 0
    for journal in ownerless_journals():
        try:
            address = _meant_for(journal)
            if address not in connections and address not in silent:
                require_answer(address)
                connections[address] = _connect(address)
            if address in connections:
                sent += _finish(journal, address, connections[address])
        except Exception as error:
            silent |= {address} if isinstance(error, ConnectionError) else set()
            _say(journal, error)
    return sent


def repair() -> list[str]:
    """Make the registry's champions loadable again; see `registry.repair`.

    Raises:
        ConnectionError: the store cannot be used.
    """
    address = tracking_address()
    require_answer(address)
    from gptmill.tracking import registry

    return registry.repair(_connect(address).client)


def _connect(address: str) -> Any:
    """Open a store; mlflow is imported here."""
    from gptmill.tracking.delivery import Delivery

    return Delivery(address)


def _finish(journal: Journal, address: str, delivery: Any) -> bool:
    """End the journal if its process could not, and send it if it waits and goes there."""
    if _meant_for(journal) != address:
        return False
    if not journal.ended:
        last = [event for _, event in journal.events()]
        stage = [event["stage"] for event in last if event["kind"] == "start"][-1]
        journal.append(
            {
                "kind": "end",
                "time": last[-1]["time"],
                "stage": stage,
                "status": "KILLED",
                "error": "the process was gone",
            }
        )
    delivery.deliver(journal)
    return True


def _meant_for(journal: Journal) -> str:
    """The address of the run; today's, with its password, if it is the same place.

    Raises:
        DamagedJournal: nothing tells what run it is of.
    """
    starts = [event for _, event in journal.events() if event["kind"] == "start"]
    if not starts:
        raise DamagedJournal("it does not say what run it is of")
    noted = starts[-1]["address"]
    today = tracking_address()
    return today if as_noted(today) == noted else noted or own_database()


def _say(journal: Journal, error: Exception) -> None:
    kept = ""
    if isinstance(error, DamagedJournal):
        kept = f"; it is kept as {journal.set_aside()}"
    print(f"tracking: {journal.path}: {_fault(error)}{kept}", file=sys.stderr)


def _fault(error: Exception) -> str:
    message = without_credentials(str(error).split("\n")[0][:300])
    plain = isinstance(error, ConnectionError | DamagedJournal)
    return message if plain else f"{type(error).__name__}: {message}"
