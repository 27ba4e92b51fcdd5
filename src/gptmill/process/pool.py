"""Worker threads that nobody waits for when the work is stopped, and worker processes."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from gptmill.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
POLL_SECONDS = 0.5


@contextmanager
def impatient_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads are waited for only if the block succeeds.

    An exception, such as Ctrl-C, cancels what has not begun and leaves the rest to itself: threads
    that wait for a network cannot be ended, and `gptmill.process.interrupt` does not wait for them.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for work that holds Python's lock; they end with this one, however it ends.

    On Linux they are forked, which takes milliseconds where a fresh Python takes as long as the
    stage's imports. They must not use what other threads of this process hold a lock of.
    """
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, context, _begin, (os.getpid(),))
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for want of memory: lower runtime.threads"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """In a worker: signals are the parent's to answer, and its death is the worker's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def in_turn(
    pool: Executor | None,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
) -> Iterator[Result]:
    """`function` of each item in the items' order, `ahead` at once; without a pool one by one.

    Neither items nor results pile up: an item is taken when an earlier result has been.
    """
    if pool is None:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
