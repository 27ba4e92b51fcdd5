"""Short messages, ham or spam, whose exact posterior gives the best possible accuracy.

Both classes write the same clauses with the same words; only how often they do so differs, so every
clause is some evidence and none is proof. Some clauses come in pairs with the same words in
another order ("you have won" and "have you won"), which a bag of words cannot tell apart.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random

from gptmill.embedded import lexicon, source
from gptmill.embedded.source import END, Draw, Program

DEFAULT_COUNT = 12000
"""Twice the SMS Spam Collection's 5,572: its 750 spam are too few for a small transformer."""

SPAM_SHARE = 0.134
"""The share of spam, as in the SMS Spam Collection (747 of 5,572)."""

LABELS = ("ham", "spam")


@dataclass(frozen=True)
class Message:
    """One message, its label, and what its text says about the label."""

    text: str
    label: str
    log_likelihood_ratio: float
    """ln p(text | spam) - ln p(text | ham) in nats, exactly: above zero speaks for spam."""


@dataclass(frozen=True, eq=False)  # each is itself alone, and quick to look up
class Clause:
    """A phrase with slots, and how much more readily spam uses it than ham."""

    evidence: float
    """ln of the ratio of the spam weight to the ham weight; normalising shifts all by the same."""
    pattern: str

    @cached_property
    def head(self) -> str:
        """The words before the first slot, which tell the clause apart."""
        return self.pattern.partition("{")[0]

    @cached_property
    def slots(self) -> list[tuple[str, str]]:
        """Each slot's name with the words after it."""
        return re.findall(r"{(\w+)}([^{]*)", self.pattern)


def messages(seed: int, count: int = DEFAULT_COUNT) -> Iterator[Message]:
    """Draw labelled messages, independent of each other and reproducible from the seed."""
    random = Random(seed)
    for _ in range(count):
        label = "spam" if random.random() < SPAM_SHARE else "ham"
        own = source.Sampler(random)
        PROGRAMS[label](own)
        other = source.Retelling(own.choices)
        PROGRAMS["ham" if label == "spam" else "spam"](other)
        ham, spam = (other, own) if label == "spam" else (own, other)
        yield Message(own.text, label, ham.nats - spam.nats)


def message_nats(text: str, label: str) -> float:
    """Parse a message and return -ln p(text | label) in nats.

    Raises:
        ValueError: The text is not a message of this grammar, or the label is unknown.
    """
    if label not in LABELS:
        raise ValueError(f"label {label!r} is neither of {LABELS}")
    return source.nats(PROGRAMS[label], text)


def message_log_likelihood_ratio(text: str) -> float:
    """Parse a message and return ln p(text | spam) - ln p(text | ham) in nats.

    Raises:
        ValueError: The text is not a message of this grammar; says where it departs.
    """
    return message_nats(text, "ham") - message_nats(text, "spam")


CLAUSES = (
    # Pairs with the same words in another order: only the order is evidence.
    Clause(+2.5, "you have won the {thing}"),
    Clause(-2.5, "have you won the {thing}"),
    Clause(+2.5, "call me now for the {thing}"),
    Clause(-2.5, "now call me for the {thing}"),
    Clause(+2.5, "you can get the {colour} {thing}"),
    Clause(-2.5, "can you get the {colour} {thing}"),
    Clause(+2.5, "it is free at the {place}"),
    Clause(-2.5, "is it free at the {place}"),
    # More often spam.
    Clause(+3.1, "text {number} to get a {thing}"),
    Clause(+2.5, "your prize is a {colour} {thing}"),
    Clause(+1.9, "only {count} {things} left"),
    Clause(+1.9, "a free {thing} for you"),
    Clause(+1.2, "new {things} at the {place}"),
    Clause(+0.6, "win {count} {things} {time}"),
    # More often ham.
    Clause(-0.6, "come to the {place} {time}"),
    Clause(-1.2, "bring the {colour} {thing}"),
    Clause(-1.2, "my number is {number}"),
    Clause(-1.9, "see you at the {place}"),
    Clause(-2.5, "sorry i lost the {thing}"),
    Clause(-2.5, "did {name} win the {thing} {time}"),
    Clause(-3.1, "where are you and {name}"),
)


_OPENERS = (
    Clause(-0.6, "hi {name}"),
    Clause(-0.2, "hey {name}"),
    Clause(+0.4, "hello {name}"),
    Clause(+0.6, "dear {name}"),
)

_MARKS = {". ": -0.3, "! ": 0.5, ", ": -0.2}
"""Marks between clauses, and their evidence for spam."""

_GO_ON = (1.0, 1.0, 0.6, 0.5)
"""The probability of each next clause; both classes stop alike."""

_SLOTS: dict[str, Sequence[str]] = {
    "name": lexicon.NAMES,
    "thing": lexicon.THINGS,
    "things": tuple(lexicon.PLURALS.values()),
    "colour": lexicon.COLOURS,
    "place": lexicon.PLACES,
    "feeling": lexicon.FEELINGS,
    "time": ("today", "now", "this evening", "on monday"),
    "count": lexicon.UNITS[2:10],
    "number": tuple(str(number) for number in range(20, 100)),
}


def _program(label: str) -> Program:
    """The class-conditional source: the clauses of both classes, weighed for one of them."""
    sign = 0.5 if label == "spam" else -0.5

    def write(draw: Draw) -> None:
        write_clause(draw, _OPENERS, sign)
        for go_on in _GO_ON:
            if _mark(draw, sign, go_on) == END:
                return
            write_clause(draw, CLAUSES, sign)
        draw.say(END)

    return write


def write_clause(draw: Draw, clauses: Sequence[Clause], sign: float = 0.0) -> None:
    """Draw one clause and fill its slots.

    The sign says for whom: +1/2 for spam, -1/2 for ham, 0 for neither (all equally likely).
    """
    heads, weights = _weighed(tuple(clauses), sign)
    clause = clauses[heads.index(draw.pick(heads, weights))]
    for slot, after in clause.slots:
        draw.pick(_SLOTS[slot], after=after)


@lru_cache
def _weighed(clauses: tuple[Clause, ...], sign: float) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The heads of clauses and their weights."""
    weights = (math.exp(sign * clause.evidence) for clause in clauses)
    return tuple(clause.head for clause in clauses), tuple(weights)


def _mark(draw: Draw, sign: float, go_on: float) -> str:
    """Draw a mark that announces another clause, or the end."""
    return draw.pick(*_marks(sign, go_on))


@lru_cache
def _marks(sign: float, go_on: float) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The marks, with the end unless it goes on for certain, and their weights."""
    weights = [math.exp(sign * evidence) for evidence in _MARKS.values()]
    if go_on == 1:
        return tuple(_MARKS), tuple(weights)
    share = go_on / sum(weights)
    return (*_MARKS, END), (*(share * weight for weight in weights), 1 - go_on)


PROGRAMS = {label: _program(label) for label in LABELS}
