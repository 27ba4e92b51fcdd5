"""What all tests share."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def heard_signals() -> None:
    """A shell starts what ends in `&` deaf to Ctrl-C, and so would be what the tests start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
