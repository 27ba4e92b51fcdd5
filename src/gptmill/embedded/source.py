"""Probabilistic programs over text: one description, sampled forwards and scored backwards.

A program is a function of a `Draw`. It calls `say` for text that is certain and `pick` for a random
choice, and a choice is made exactly where its text appears. When the texts offered at each choice
are prefix-free (none begins another), a text reveals its choices from left to right, one way only:
the program is a prefix code, so no two derivations give the same text and the product of the
chosen probabilities is the text's probability.
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import Protocol

END = "\x03"
"""Ends every program's text, so that stopping is a choice with a text of its own; never shown."""


class Draw(Protocol):
    """Where a program gets its choices from: chance, or a text that is being parsed."""

    def say(self, text: str) -> None:
        """Append text that follows with certainty."""

    def pick(
        self,
        options: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        before: str = "",
        after: str = "",
    ) -> str:
        """Choose one option, append `before + option + after`, and return the option.

        Weights need not sum to one; without them every option is equally likely.
        """


Program = Callable[[Draw], None]


class Sampler:
    """Draws choices from a random generator and keeps them, the text and its nats."""

    def __init__(self, random: Random) -> None:
        self._random = random.random
        self._parts: list[str] = []
        self.choices: list[int] = []
        self.nats = 0.0

    @property
    def text(self) -> str:
        """The text so far, without the end mark."""
        return "".join(self._parts).removesuffix(END)

    def say(self, text: str) -> None:
        self._parts.append(text)

    def pick(
        self,
        options: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        before: str = "",
        after: str = "",
    ) -> str:
        if weights is None:
            index = int(self._random() * len(options))
            self.nats += math.log(len(options))
        else:
            cumulative, surprise, _ = _weighed(tuple(weights))
            index = bisect(cumulative, self._random() * cumulative[-1], 0, len(options) - 1)
            self.nats += surprise[index]
        option = options[index]
        self.choices.append(index)
        self._parts.append(f"{before}{option}{after}")
        return option


class Retelling:
    """Makes the same choices again, to score them under another program's weights."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = iter(choices)
        self.nats = 0.0

    def say(self, text: str) -> None:
        """Certain text costs nothing."""

    def pick(
        self,
        options: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        before: str = "",
        after: str = "",
    ) -> str:
        index = next(self._choices)
        self.nats -= _log_probability(index, options, weights)
        return options[index]


class Reader:
    """Takes choices from a given text, so that running the program parses and scores the text."""

    def __init__(self, text: str) -> None:
        self._text = text + END
        self._position = 0
        self.nats = 0.0

    def say(self, text: str) -> None:
        if not self._text.startswith(text, self._position):
            raise ValueError(f"{self._where()}: expected {text!r}")
        self._position += len(text)

    def pick(
        self,
        options: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        before: str = "",
        after: str = "",
    ) -> str:
        self.say(before)
        matches = [
            index
            for index, option in enumerate(options)
            if self._text.startswith(option + after, self._position)
        ]
        if not matches:
            raise ValueError(f"{self._where()}: expected one of {list(options)[:8]}")
        assert len(matches) == 1, f"ambiguous grammar: {[options[i] for i in matches]}"
        (index,) = matches
        self.nats -= _log_probability(index, options, weights)
        self._position += len(options[index] + after)
        return options[index]

    def finish(self) -> None:
        """Check that the program has used up the text.

        Raises:
            ValueError: Text remains after the program's end.
        """
        if self._position != len(self._text):
            raise ValueError(f"{self._where()}: expected the end")

    def _where(self) -> str:
        rest = self._text[self._position : self._position + 24].replace(END, "<end>")
        return f"outside the grammar at character {self._position} ({rest!r})"


def sample(program: Program, random: Random) -> tuple[str, float]:
    """Draw a text from a program; return it with its exact -ln p in nats."""
    sampler = Sampler(random)
    program(sampler)
    return sampler.text, sampler.nats


def nats(program: Program, text: str) -> float:
    """Parse a text and return its exact -ln p in nats.

    Raises:
        ValueError: The program cannot produce this text; says where it departs.
    """
    reader = Reader(text)
    program(reader)
    reader.finish()
    return reader.nats


def _log_probability(index: int, options: Sequence[str], weights: Sequence[float] | None) -> float:
    if weights is None:
        return math.log(1 / len(options))
    return _weighed(tuple(weights))[2][index]


@lru_cache(maxsize=1024)
def _weighed(weights: tuple[float, ...]) -> tuple[list[float], list[float], list[float]]:
    """Cumulative weights, and of each option -ln p and ln p: a program weighs few choices, each
    time and again."""
    cumulative, total = list(accumulate(weights)), sum(weights)
    surprise = [math.log(cumulative[-1] / weight) for weight in weights]
    return cumulative, surprise, [math.log(weight / total) for weight in weights]
