"""Is the judge fit to judge? Questions whose right score is known, asked in every run.

References given as candidates should score near 100, references of other entries near 0, and the
same question asked again should bring the same score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptmill.judge.examine import Question, Verdict
from gptmill.judge.rubric import Rubric
from gptmill.judge.statistics import repeat_deviation

REFERENCES_AT_LEAST = 90.0
SHUFFLED_AT_MOST = 20.0
DEVIATION_AT_MOST = 5.0
REPETITIONS = 2
"""Times a repeated question is asked beyond its first."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Controls:
    """Which entries (indices) serve which control; drawn once, reproducible from the seed."""

    references: tuple[int, ...]
    shuffled: tuple[tuple[int, int], ...]
    """Pairs of an entry and the other entry whose reference it is given."""
    repeated: tuple[int, ...]

    def questions(self, entries: Sequence[Entry], rubric: Rubric) -> list[Question[int]]:
        """References, then shuffled ones, then each repeated entry `REPETITIONS` times."""

        def ask(entry: int, candidate: str, repetition: int = 0) -> Question[int]:
            return Question(rubric.prompt(entries[entry], candidate), rubric.parse, repetition)

        return [
            *(ask(i, entries[i]["output"]) for i in self.references),
            *(ask(i, entries[j]["output"]) for i, j in self.shuffled),
            *(
                ask(i, entries[i]["response"], repetition)
                for i in self.repeated
                for repetition in range(1, REPETITIONS + 1)
            ),
        ]

    def metrics(
        self,
        verdicts: Sequence[Verdict[int]],
        scores: Sequence[float | None],
        minimum_coverage: float,
    ) -> dict[str, Any]:
        """What the controls say, from their verdicts and the entries' own scores.

        Returns:
            `controls/references` and `controls/shuffled` (mean scores), and
            `controls/repeat_deviation` (standard deviation of one question's scores), None where
            nothing could be asked; `controls/coverage` (fraction); `controls/passed`. A judge
            passes when both means are known and within bounds, no deviation is too large, and
            the controls are covered as the entries must be.
        """
        values = [verdict.value for verdict in verdicts]
        first, second = len(self.references), len(self.references) + len(self.shuffled)
        references, shuffled = _mean(values[:first]), _mean(values[first:second])
        deviation = repeat_deviation(self._repeats(values[second:], scores))
        coverage = sum(value is not None for value in values) / len(values)
        passed = (
            references is not None
            and shuffled is not None
            and references >= REFERENCES_AT_LEAST
            and shuffled <= SHUFFLED_AT_MOST
            and (deviation or 0.0) <= DEVIATION_AT_MOST
            and coverage >= minimum_coverage
        )
        return {
            "controls/references": references,
            "controls/shuffled": shuffled,
            "controls/repeat_deviation": deviation,
            "controls/coverage": coverage,
            "controls/passed": passed,
        }

    def _repeats(
        self, again: Sequence[int | None], scores: Sequence[float | None]
    ) -> list[list[float]]:
        """For each repeated entry, all its scores that were reached."""
        groups = []
        for place, entry in enumerate(self.repeated):
            asked = (scores[entry], *again[place * REPETITIONS : (place + 1) * REPETITIONS])
            groups.append([value for value in asked if value is not None])
        return groups


def describe(metrics: Mapping[str, Any]) -> str:
    """The verdict on the judge in one line, from what `Controls.metrics` returns."""
    figures = (
        ("references", f"at least {REFERENCES_AT_LEAST:g}"),
        ("shuffled", f"at most {SHUFFLED_AT_MOST:g}"),
        ("repeat_deviation", f"at most {DEVIATION_AT_MOST:g}"),
        ("coverage", "as judge.minimum_coverage"),
    )
    parts = []
    for name, bound in figures:
        value = metrics[f"controls/{name}"]
        known = "unknown" if value is None else f"{value:.4g}"
        parts.append(f"{name.replace('_', ' ')} {known} ({bound})")
    outcome = "passed" if metrics["controls/passed"] else "FAILED"
    return f"the judge {outcome} its controls: {', '.join(parts)}"


def draw_controls(entries: Sequence[Entry], count: int, seed: int) -> Controls:
    """Controls on `count` entries at most, half as many repeated.

    An entry is shuffled only where another has a different reference, and repeated only where its
    response is not empty.

    Raises:
        ValueError: no entries, or a count below 1.
    """
    if not entries or count < 1:
        raise ValueError(f"{count} controls of {len(entries)} entries")
    generator = np.random.default_rng(seed)
    chosen = sorted(generator.permutation(len(entries))[:count].tolist())
    shuffled = []
    for entry in chosen:
        own = entries[entry]["output"].strip()
        others = [j for j in range(len(entries)) if entries[j]["output"].strip() != own]
        if others:
            shuffled.append((entry, others[generator.integers(len(others))]))
    answered = [entry for entry in chosen if entries[entry]["response"].strip()]
    return Controls(tuple(chosen), tuple(shuffled), tuple(answered[: (count + 1) // 2]))


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
