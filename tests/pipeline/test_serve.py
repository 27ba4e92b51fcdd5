"""Our judge asks our server over HTTP, which answers with one of our own ONNX models."""

import pytest

from gptmill.errors import UserError
from gptmill.judge.openai_compatible import OpenAIServer
from gptmill.judge.run import judge
from gptmill.params import Judge
from tests.unit.serve.conftest import models, running, start

__all__ = ["models", "running", "start"]

ENTRIES = [
    {"instruction": "Name a color.", "output": "blue", "response": "the cat", "family": "names"},
    {"instruction": "Name an animal.", "output": "cat", "response": "cat", "family": "names"},
    {"instruction": "Name a hill.", "output": "none", "response": "", "family": "names"},
]


@pytest.fixture
def parameters(running) -> Judge:
    return Judge(
        backend="openai",
        model="long",
        host=running.address,
        rubric="graded",
        control_samples=2,
        seed=1,
        context_length=1024,
        timeout=30,
        retries=1,
        requests_in_flight=3,
        minimum_coverage=0,
        on_failed_controls="warn",
        bootstrap_samples=50,
    )


def test_a_model_that_knows_nothing_scores_nothing(parameters, tmp_path):
    """The book's wording asks for an integer; random weights write nonsense, which is no score.
    The empty answer is 0 unasked."""
    parameters = parameters.model_copy(update={"rubric": "book"})
    metrics, scores = judge(ENTRIES, parameters, state=tmp_path)
    assert [score["score"] for score in scores] == [None, None, 0]
    assert metrics["coverage"] == pytest.approx(1 / 3)
    assert all(len(score["faults"]) == 2 for score in scores[:2])  # asked, and asked once more
    asked = [entry for entry in ENTRIES if entry["response"]]
    with pytest.raises(UserError, match=r"the judge scored 0 of 2 answers.* 2 × "):
        judge(asked, parameters, state=tmp_path)


def test_a_schema_is_kept_even_by_a_model_that_knows_nothing(parameters, tmp_path):
    """The house's wording sends a schema, and the server lets nothing else through."""
    metrics, scores = judge(ENTRIES, parameters, state=tmp_path)
    assert metrics["coverage"] == 1 and not any(score["faults"] for score in scores)
    assert all(0 <= score["score"] <= 100 for score in scores)
    again, _ = judge(ENTRIES, parameters, state=tmp_path)
    assert again == metrics


def test_a_model_that_is_not_served_is_named(running):
    with pytest.raises(UserError, match=r"no model llama3: .* it has instructions, long, text"):
        OpenAIServer(running.address, "llama3", key="", timeout=5, reply_tokens=16)
