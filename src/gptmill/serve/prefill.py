"""A prefill in pieces, of what is not known yet. B rows, T tokens of the longest rest."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from statistics import median

import numpy as np

from gptmill.batching import left_padded
from gptmill.serve.prefix_cache import BLOCK_TOKENS, PrefixCache
from gptmill.serve.request import Slot


class Prefill:
    """A group's windows on their way through the model.

    Equal windows are read once: `windows` are the unlike ones, and `shared` [group] says which of
    them each slot has. The rows share their columns, so all of them read as many tokens as the one
    with the longest rest, and take the `reused` [B] before those from `prefixes`.
    """

    def __init__(self, group: list[Slot], prefixes: PrefixCache) -> None:
        windows = [tuple(slot.sequence.window()) for slot in group]
        self.group, self.windows = group, list(dict.fromkeys(windows))
        self.shared = np.array([self.windows.index(window) for window in windows])
        lengths = np.array([len(window) for window in self.windows])
        found = [prefixes.find(window[:-1]) for window in self.windows]
        rest = max(lengths - [BLOCK_TOKENS * len(blocks) for blocks in found])
        self.reused = np.maximum(lengths - rest, 0)
        self.padding = lengths.max() - lengths
        self.held = [_first(blocks, tokens) for blocks, tokens in zip(found, self.reused)]
        self._ids, _ = left_padded(
            [window[tokens:] for window, tokens in zip(self.windows, self.reused)]
        )
        self._read = 0

    def take(self, tokens: int) -> np.ndarray:
        """The next ids [B, t], about `tokens` in all."""
        first = self._read
        self._read = min(self._ids.shape[1], first + max(1, tokens // len(self._ids)))
        return self._ids[:, first : self._read]

    @property
    def is_read(self) -> bool:
        return self._read == self._ids.shape[1]


class Pace:
    """How many tokens are read between two steps of those that run: as many as take about as long
    as a step, so that nobody's tokens come at less than half the pace. Medians, because a busy
    machine holds up now this, now that."""

    FEWEST, MOST = 8, 256

    def __init__(self) -> None:
        self.tokens = 2 * self.FEWEST
        self._steps: deque[float] = deque(maxlen=9)  # seconds
        self._costs: deque[float] = deque(maxlen=5)  # seconds of a token that is read

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Around a step."""
        started = time.monotonic()
        yield
        self._steps.append(time.monotonic() - started)

    @contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Around the reading of so many tokens."""
        started = time.monotonic()
        yield
        self._costs.append((time.monotonic() - started) / tokens)
        if self._steps:
            fitting = median(self._steps) / median(self._costs)
            self.tokens = int(min(max(fitting, self.FEWEST), self.MOST))


class Grouping:
    """Decides whose windows are read together.

    Args:
        tokens: padded ones of a group, if it has more than one window.
        little: padded tokens that are not worth a second group.
    """

    def __init__(self, prefixes: PrefixCache, tokens: int, little: int) -> None:
        self._prefixes, self._tokens, self._little = prefixes, tokens, little
        self._windows: list[list[int]] = []
        self._rests: list[int] = []

    def takes(self, window: list[int]) -> bool:
        """Add a window, unless the group is full, or it is so much longer or shorter than the rest
        of them that most of the work were padding, or the group is about to read what it begins
        with: then it waits for that."""
        known = BLOCK_TOKENS * len(self._prefixes.find(window[:-1]))
        rests = [*self._rests, len(window) - known]
        padded = max(rests) * len(rests)
        wasteful = padded > max(self._little, 2 * sum(rests))
        if self._windows and (padded > self._tokens or wasteful or self._reads(window, known)):
            return False
        self._windows.append(window)
        self._rests = rests
        return True

    def _reads(self, window: list[int], known: int) -> bool:
        return self._prefixes.keeps and any(
            _alike(window, other) - known >= self._little
            for other in self._windows
            if other != window
        )


def _alike(left: list[int], right: list[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right)))


def _first(blocks: list[np.ndarray], tokens: int) -> list[np.ndarray]:
    """The keys and values of so many of the first tokens."""
    whole, part = divmod(int(tokens), BLOCK_TOKENS)
    return [*blocks[:whole], *([blocks[whole][:, :, :part]] if part else [])]
