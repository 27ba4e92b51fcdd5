"""The short form of `make test-load`: all of its traffic for a few seconds."""

from tests.load.run import run_load
from tests.load.traffic import TOKENS


def test_under_load_nothing_is_lost_and_every_refusal_is_documented(models):
    load = run_load(models, clients=24, seconds=4)
    assert load.faults() == []
    assert set(load.outcome.kinds) >= {"canceled", "slow reader", "malformed", "broken off"}
    assert load.outcome.statuses[200] > TOKENS
    assert load.reused > 0
