"""Worker threads that nobody waits for when the work is stopped."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


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
