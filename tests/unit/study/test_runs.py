"""The small trainings: each curve gets the verdict it is set up for; both objectives learn."""

from collections.abc import Iterator

import pytest
import torch

from gptmill.embedded.stories import stories
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.study.curves import four_runs, loss_curves, setups
from gptmill.study.objectives import both_sides, objectives
from gptmill.study.small import small_text

TEXTS = [story.text for story in stories(seed=1, count=400)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the study has it: between many tests, threads of small products wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_four_runs_get_the_verdicts_they_are_set_up_for() -> None:
    text = small_text(TEXTS[:360], TEXTS[360:])
    runs = four_runs(text, steps=100, seed=1)
    found = loss_curves(runs)
    titles = [axes.get_title("left").split(":")[0] for axes in found.figure.axes]
    assert titles == [setup.verdict for setup in setups()]
    assert found.metrics["verdicts_as_set_up"] == 4
    first = {round(run.validation[0][1], 6) for _, run in runs}
    assert len(first) == 1  # the same initial weights


def test_a_hidden_word_is_read_from_both_sides_a_next_word_from_the_left() -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(11, 8, 2, 2, 16), 0.3, 0.3).eval()
    ids = torch.arange(6)[None]
    changed = ids.clone()
    changed[0, 5] = 9
    with torch.no_grad():
        assert torch.equal(model(ids)[:, :5], model(changed)[:, :5])
        assert not torch.allclose(both_sides(model, ids)[:, :5], both_sides(model, changed)[:, :5])
        # Alone, a token has no sides: both are the same model.
        torch.testing.assert_close(both_sides(model, ids[:, :1]), model(ids[:, :1]))


def test_both_objectives_learn() -> None:
    found = objectives(TEXTS[:360], TEXTS[360:], steps=60, seed=1)
    for name in {row["objective"] for row in found.rows}:
        losses = [row["loss"] for row in found.rows if row["objective"] == name]
        assert losses[-1] < losses[0] - 1
    assert found.metrics["next_word_loss"] < found.metrics["hidden_word_loss"]
