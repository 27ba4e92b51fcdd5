"""What a model has read lately, so that a prompt that begins like an earlier one, or like one that
still runs, computes only its rest.

Keys and values are kept in blocks of tokens, each known by its tokens and by the block before it
(Kwon et al. 2023, PagedAttention; vLLM's automatic prefix caching, but with the tokens themselves
where that has a hash: nothing is taken for what it is not). Conversations share the blocks of what
they have in common, and those that nobody used for longest go first.

L layers, H heads, D head width.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_TOKENS = 16

_Key = tuple[int, tuple[int, ...]]  # the number of the block before, and the tokens


@dataclass(frozen=True)
class _Block:
    number: int
    held: np.ndarray  # [2L, H, BLOCK_TOKENS, D]


class PrefixCache:
    """The blocks of one model, for one thread.

    Args:
        capacity: bytes that they may have together; 0 keeps nothing.
    """

    def __init__(self, capacity: int) -> None:
        self.bytes = 0
        self._capacity = capacity
        self._blocks: OrderedDict[_Key, _Block] = OrderedDict()  # the longest unused first
        self._made = 0

    @property
    def keeps(self) -> bool:
        return self._capacity > 0

    def find(self, ids: Sequence[int]) -> list[np.ndarray]:
        """Keys and values of the first tokens of `ids`, block after block, as far as known."""
        known = self._known(ids)
        self._used([key for key, _ in known])
        return [block.held for _, block in known]

    def store(self, ids: Sequence[int], read: Callable[[int, int], np.ndarray]) -> None:
        """Keep the whole blocks of `ids`.

        Args:
            read: gives a copy of the keys and values of tokens from one to before another.
        """
        if not self.keeps:
            return
        known = self._known(ids)
        keys = [key for key, _ in known]
        number = known[-1][1].number if known else 0
        for start, tokens in _blocks(ids)[len(known) :]:
            keys.append((number, tokens))
            held = read(start, start + BLOCK_TOKENS)
            self._made = number = self._made + 1
            self._blocks[keys[-1]] = _Block(number, held)
            self.bytes += held.nbytes
        self._used(keys)
        while self.bytes > self._capacity:
            _, block = self._blocks.popitem(last=False)
            self.bytes -= block.held.nbytes

    def clear(self) -> None:
        """Forget all."""
        self._blocks.clear()
        self.bytes = 0

    def _known(self, ids: Sequence[int]) -> list[tuple[_Key, _Block]]:
        found, number = [], 0
        for _, tokens in _blocks(ids):
            block = self._blocks.get((number, tokens))
            if block is None:
                break
            found.append(((number, tokens), block))
            number = block.number
        return found

    def _used(self, keys: list[_Key]) -> None:
        """The last block of a text is the first to go: without those before it is of no use."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)


def _blocks(ids: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Where each whole block starts, and its tokens."""
    starts = range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS)
    return [(start, tuple(ids[start : start + BLOCK_TOKENS])) for start in starts]
