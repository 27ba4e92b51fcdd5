"""The sampler: filters on a distribution worked by hand, frequencies, seeds, bad values."""

import math
from dataclasses import fields

import numpy as np
import pytest

from gptmill import params
from gptmill.cli import build_parser
from gptmill.errors import UserError
from gptmill.generate.sampling import (
    Sampler,
    SamplingOptions,
    SequenceSampler,
    distribution,
    next_tokens,
)

# Probabilities of five tokens, deliberately out of order.
PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + 3


def kept(**options: float) -> dict[int, float]:
    ids, probabilities = distribution(LOGITS, SamplingOptions(**{"temperature": 1.0, **options}))
    return dict(zip(ids.tolist(), probabilities.tolist()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.25, 4: 0.2}),
        ({"top_k": 2}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"top_k": 9}, {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.25, 4: 0.2}),
        ({"top_p": 0.6}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"top_p": 0.7}, {1: 0.4 / 0.85, 3: 0.25 / 0.85, 4: 0.2 / 0.85}),
        ({"top_p": 0.0}, {1: 1.0}),
        ({"min_p": 0.45}, {1: 0.4 / 0.85, 3: 0.25 / 0.85, 4: 0.2 / 0.85}),
        ({"min_p": 1.0}, {1: 1.0}),
        # top-p counts what top-k left: 0.4 of 0.65 is enough for 0.6, of 1 it would not be.
        ({"top_k": 2, "top_p": 0.6}, {1: 1.0}),
        ({"temperature": 0.0}, {1: 1.0}),
    ],
)
def test_filters_by_hand(options: dict[str, float], expected: dict[int, float]) -> None:
    assert kept(**options) == pytest.approx(expected, rel=1e-6)


def test_temperature_raises_probabilities_to_its_inverse() -> None:
    squared = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert kept(temperature=0.5) == pytest.approx(dict(enumerate(squared)), rel=1e-5)
    assert kept(temperature=1e-30) == {1: 1.0}


def test_the_repetition_penalty_lowers_either_sign() -> None:
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    options = SamplingOptions(temperature=1.0, repetition_penalty=2.0)
    _, probabilities = distribution(logits, options, {0, 1})
    expected = np.exp([1.0, -4.0, 1.0])
    np.testing.assert_allclose(probabilities, expected / expected.sum(), rtol=1e-6)
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_the_penalty_also_counts_what_was_generated() -> None:
    sampler = Sampler(SamplingOptions(repetition_penalty=10.0), prompts=[[0]])
    logits = np.array([[3.0, 2.5, 2.0]], np.float32)
    assert [int(sampler.next_tokens(logits)[0]) for _ in range(3)] == [1, 2, 0]


def test_ties_at_the_last_place_of_top_k_stay_together() -> None:
    ids, _ = distribution(
        np.array([1.0, 3.0, 1.0, 0.0], np.float32), SamplingOptions(temperature=1.0, top_k=2)
    )
    assert ids.tolist() == [0, 1, 2]


def test_top_p_of_equals_keeps_the_first() -> None:
    logits = np.tile(np.array([0, -1], np.float32), 500)  # enough for an unstable sort to show
    share = (500 + 99.5 * math.exp(-1)) / (500 + 500 * math.exp(-1))
    ids, _ = distribution(logits, SamplingOptions(temperature=1.0, top_p=share))
    assert ids[ids % 2 == 0].tolist() == list(range(0, 1000, 2))
    assert ids[ids % 2 == 1].tolist() == list(range(1, 200, 2))


def test_draws_follow_the_probabilities() -> None:
    n = 4000
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=5), prompts=[[]] * n)
    counts = np.bincount(sampler.next_tokens(np.tile(LOGITS, (n, 1))), minlength=5)
    deviation = (counts - n * PROBABILITIES) ** 2 / (n * PROBABILITIES)
    assert deviation.sum() < 18.5  # chi-squared with 4 degrees of freedom: one in a thousand


def test_a_sequence_draws_the_same_in_any_batch() -> None:
    options = SamplingOptions(temperature=1.0, seed=3)
    logits = np.random.default_rng(0).normal(size=(20, 4, 50)).astype(np.float32)

    def run(rows: list[int]) -> np.ndarray:
        sampler = Sampler(options, [[]] * len(rows), indices=rows)
        return np.array([sampler.next_tokens(step[rows]) for step in logits])

    batch = run([0, 1, 2, 3])
    assert (run([2]) == batch[:, [2]]).all()
    assert (run([3, 1]) == batch[:, [3, 1]]).all()
    assert len({tuple(column) for column in run([0, 1, 2, 3]).T}) == 4
    other = Sampler(SamplingOptions(temperature=1.0, seed=4), [[]] * 4)
    assert not (np.array([other.next_tokens(step) for step in logits]) == batch).all(axis=0).any()


def test_rows_of_unlike_options_choose_what_each_chooses_alone() -> None:
    """The server's batch: every row has options of its own, and some are greedy."""
    options = [
        SamplingOptions(temperature=temperature, top_k=k, top_p=p, min_p=m, repetition_penalty=r)
        for temperature, k, p, m, r in (
            (0.0, 0, 1.0, 0.0, 1.0), (1.0, 0, 1.0, 0.0, 1.0), (0.8, 40, 0.9, 0.0, 1.0),
            (1.5, 3, 1.0, 0.0, 1.2), (2.0, 0, 0.5, 0.0, 1.0), (1.0, 0, 1.0, 0.2, 1.0),
            (0.0, 5, 0.5, 0.0, 3.0), (1.0, 999, 0.0, 0.0, 1.0), (0.7, 7, 0.99, 0.1, 1.0),
        )
    ]  # fmt: skip
    logits = np.random.default_rng(1).normal(size=(30, len(options), 200), scale=3)
    logits = np.round(logits, 1).astype(np.float32)  # with many ties
    together = [SequenceSampler(option, [1, 2, 3]) for option in options]
    batch = np.array([next_tokens(step, together) for step in logits])
    for row, option in enumerate(options):
        alone = [SequenceSampler(option, [1, 2, 3])]
        tokens = [int(next_tokens(step[row : row + 1], alone)[0]) for step in logits]
        assert tokens == batch[:, row].tolist(), option
    assert len({tuple(column) for column in batch.T}) == len(options)


def test_keeping_rows_keeps_their_streams() -> None:
    options = SamplingOptions(temperature=1.0, repetition_penalty=1.5)
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    whole, part = (Sampler(options, [[1], [2], [3]]) for _ in range(2))
    assert (whole.next_tokens(logits) == part.next_tokens(logits)).all()
    part.keep(np.array([0, 2]))
    for _ in range(10):
        assert (whole.next_tokens(logits)[[0, 2]] == part.next_tokens(logits[[0, 2]])).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_refused(temperature: float, value: float) -> None:
    sampler = Sampler(SamplingOptions(temperature=temperature), [[], []])
    with pytest.raises(UserError, match="not finite"):
        sampler.next_tokens(np.stack([LOGITS, np.full(5, value, np.float32)]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("stop_strings", ("a", "")),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_values_out_of_range_name_themselves(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^{name} is .*; it must be"):
        SamplingOptions(**{name: value})


def test_params_and_command_line_have_every_option() -> None:
    """One sampler, asked for in the same words by samples in training, `respond` and commands."""
    options = {field.name for field in fields(SamplingOptions)}
    # The run's own seed and the model's own stop tokens are no parameters of a section.
    assert set(params.Sampling.model_fields) == options - {"seed", "stop_tokens"}
    arguments = vars(build_parser().parse_args(["generate", "--stop", "###"]))
    assert options - arguments.keys() == {"stop_tokens", "stop_strings"}
    assert arguments["stop"] == ["###"]
