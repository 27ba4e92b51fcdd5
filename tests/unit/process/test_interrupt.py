"""Ctrl-C and SIGTERM: one line, no traceback, 130 and 143, whatever the process is doing."""

import signal
import subprocess
import sys

import pytest

SETUP = "import time, sys\nfrom gptmill.process.interrupt import *\n"
READY = "print('ready', flush=True)\n"


def stopped(code: str, *numbers: int) -> tuple[int, str]:
    """Run code until it says `ready`, send signals, and give back status and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-c", SETUP + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for number in numbers:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
    _, told = process.communicate(timeout=20)
    return process.returncode, told


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
class TestBoth:
    def test_at_work(self, number: int, status: int, word: str) -> None:
        code = (
            "end_at_once('pretrain', 'nothing')\n"
            "with in_order('pretrain'):\n"
            f"  keeps('the checkpoint of step 400')\n  {READY}  time.sleep(20)\n"
        )
        kept = "the checkpoint of step 400 is kept, and the same command continues from there"
        assert stopped(code, number) == (status, f"\npretrain {word}: {kept}\n")

    def test_before_anything_began(self, number: int, status: int, word: str) -> None:
        code = f"end_at_once('pretrain', 'nothing')\n{READY}time.sleep(20)\n"
        assert stopped(code, number) == (status, f"\npretrain {word}: nothing\n")

    def test_what_was_begun_is_left_in_order(self, number: int, status: int, word: str) -> None:
        code = (
            "with in_order('pretrain'):\n  try:\n"
            f"    {READY}    time.sleep(20)\n"
            "  finally: print('in order', file=sys.stderr)\n"
        )
        assert stopped(code, number) == (status, f"in order\n\npretrain {word}\n")

    def test_a_library_that_makes_another_error_of_it(
        self, number: int, status: int, word: str
    ) -> None:
        code = (
            "with in_order('pretrain'):\n  try:\n"
            f"    {READY}    time.sleep(20)\n"
            "  except BaseException: raise ImportError('numpy failed')\n"
        )
        assert stopped(code, number) == (status, f"\npretrain {word}\n")


def test_threads_are_not_waited_for() -> None:
    code = (
        "from gptmill.process.pool import impatient_pool\n"
        "with in_order('download'), impatient_pool(2) as pool:\n"
        f"  future = pool.submit(time.sleep, 30)\n  {READY}  future.result()\n"
    )
    assert stopped(code, signal.SIGINT)[0] == 130


def test_a_second_one_does_not_wait_for_order() -> None:
    code = (
        "with in_order('pretrain'):\n  try:\n"
        f"    {READY}    time.sleep(20)\n"
        f"  finally:\n    {READY}    time.sleep(20)\n"
    )
    assert stopped(code, signal.SIGINT, signal.SIGINT)[0] == 130


def test_order_that_does_not_come_is_not_waited_for() -> None:
    code = (
        "from gptmill.process import interrupt\ninterrupt.PATIENCE_SECONDS = 0.2\n"
        "with in_order('pretrain'):\n  try:\n"
        f"    {READY}    time.sleep(20)\n  finally: time.sleep(20)\n"
    )
    assert stopped(code, signal.SIGINT)[0] == 130


def test_what_is_ignored_stays_ignored() -> None:
    """`nohup` and `&` in a script set SIGINT aside, and mean it."""
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"with in_order('pretrain'):\n  {READY}  time.sleep(0.3)\nprint('done', file=sys.stderr)"
    )
    assert stopped(code, signal.SIGINT) == (0, "done\n")


def test_other_errors_stay_themselves() -> None:
    code = "with in_order('pretrain'): raise ValueError('mine')"
    status, told = stopped(code)
    assert status == 1
    assert "ValueError: mine" in told
