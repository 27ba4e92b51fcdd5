"""A whole judgement over real HTTP: scores, cache, controls, injected faults."""

import socket
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from gptmill.errors import UserError
from gptmill.judge import examine
from gptmill.judge.controls import Controls, draw_controls
from gptmill.judge.examine import Verdict
from gptmill.judge.run import judge

DOCUMENT = Path(__file__).parents[3] / "docs" / "judge.md"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "FIRST_PAUSE", 0.01)


def _change(parameters, **values):
    return parameters.model_copy(update=values)


def test_scores_are_the_models_in_the_entries_order(ollama, parameters, responses, tmp_path):
    metrics, scores = judge(responses, parameters, state=tmp_path)
    expected = [100.0] * 8 + [round(60 * 4 / 9), round(60 * 3 / 9), 0.0, 0.0]
    assert [entry["score"] for entry in scores] == expected
    assert metrics["score/mean"] == pytest.approx(sum(expected) / 12)
    assert metrics["score/low"] < metrics["score/mean"] < metrics["score/high"]
    assert metrics["coverage"] == 1 and metrics["empty"] == 1
    assert metrics["family/active/score"] == pytest.approx(sum(expected[::2]) / 6)
    assert metrics["judge/digest"] == ollama.models["llama3:latest"]
    exact = [entry["exact_match"] for entry in scores]
    peer = stats.spearmanr(expected, exact).statistic
    assert metrics["agreement/exact_match"] == pytest.approx(peer)


def test_requests_carry_schema_options_and_no_thinking(ollama, parameters, responses, tmp_path):
    ollama.capabilities = ["completion", "thinking"]
    ollama.longest = 2048
    judge(responses, parameters, state=tmp_path)
    body = ollama.chats[0]
    assert body["format"]["properties"]["score"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 100,
    }
    assert body["options"] == {"temperature": 0, "num_ctx": 2048, "num_predict": 64, "seed": 123}
    assert body["think"] is False and body["keep_alive"] and body["stream"]


def test_a_model_without_thinking_is_not_told_about_it(ollama, parameters, responses, tmp_path):
    judge(responses, parameters, state=tmp_path)
    assert "think" not in ollama.chats[0]


def test_an_empty_answer_scores_zero_unasked(ollama, parameters, responses, tmp_path):
    _, scores = judge(responses, parameters, state=tmp_path)
    assert scores[11]["score"] == 0
    assert not any("<candidate>\n  \n" in chat["messages"][-1]["content"] for chat in ollama.chats)


def test_a_finished_run_asks_nothing_again(ollama, parameters, responses, tmp_path):
    bad = "Dog 3 chased"
    ollama.fault = lambda question, asked: "prose" if bad in question else None
    first = judge(responses, parameters, state=tmp_path)
    asked = len(ollama.chats)
    assert judge(responses, parameters, state=tmp_path) == first
    assert len(ollama.chats) == asked


def test_other_workers_give_the_same_result(ollama, parameters, responses, tmp_path):
    ollama.fault = lambda question, asked: "500" if asked == 0 and "Dog 5" in question else None
    many = judge(responses, parameters, state=tmp_path / "many")
    one = judge(responses, _change(parameters, requests_in_flight=1), state=tmp_path / "one")
    assert one == many


def test_the_same_question_is_asked_once(ollama, parameters, responses, tmp_path):
    """The right answers are references as well: a control and the entry share one verdict."""
    calls = iter(range(10_000))
    ollama.score = lambda parts: next(calls) % 101
    same = [responses[0], responses[0]]
    _, scores = judge(same, parameters, state=tmp_path)
    assert scores[0]["score"] == scores[1]["score"]
    assert len(ollama.chats) == 1 + 2 * 1


def test_a_new_digest_is_asked_anew(ollama, parameters, responses, tmp_path):
    judge(responses, parameters, state=tmp_path)
    asked = len(ollama.chats)
    ollama.models["llama3:latest"] = "another"
    judge(responses, parameters, state=tmp_path)
    assert len(ollama.chats) == 2 * asked


def test_an_interrupted_run_goes_on(ollama, parameters, responses, tmp_path):
    """The model is removed in the middle; the second run asks only for what is missing."""
    ollama.fault = lambda question, asked: "404" if len(ollama.chats) > 7 else None
    one_worker = _change(parameters, requests_in_flight=1)
    with pytest.raises(UserError, match="`ollama pull llama3`"):
        judge(responses, one_worker, state=tmp_path)
    kept = len(list(tmp_path.rglob("*.json")))
    assert kept == 7
    before = len(ollama.chats)
    ollama.fault = lambda question, asked: None
    resumed = judge(responses, one_worker, state=tmp_path)
    asked = len(ollama.chats) - before
    assert resumed == judge(responses, one_worker, state=tmp_path / "fresh")
    assert len(ollama.chats) - before - asked == asked + kept


def test_controls_pass_with_a_sound_judge(parameters, responses, tmp_path):
    metrics, _ = judge(responses, parameters, state=tmp_path)
    assert {key: value for key, value in metrics.items() if key.startswith("controls/")} == {
        "controls/references": 100,
        "controls/shuffled": 0,
        "controls/repeat_deviation": 0,
        "controls/coverage": 1,
        "controls/passed": True,
    }


@pytest.mark.parametrize(
    ("score", "failing"),
    [
        (lambda parts: 100, "controls/shuffled"),
        (lambda parts: 0, "controls/references"),
    ],
)
def test_controls_catch_a_judge_that_does_not_read(
    ollama, parameters, responses, tmp_path, score, failing
):
    ollama.score = score
    metrics, _ = judge(responses, parameters, state=tmp_path)
    good = {"controls/references": 100, "controls/shuffled": 0}
    assert metrics[failing] != good.pop(failing)
    assert metrics | good == metrics
    assert metrics["controls/passed"] is False


def test_the_verdict_on_the_judge_is_printed(ollama, parameters, responses, tmp_path, capsys):
    judge(responses, parameters, state=tmp_path)
    assert "the judge passed its controls: references 100 (at least 90)" in capsys.readouterr().err
    ollama.score = lambda parts: 100
    judge(responses, parameters, state=tmp_path / "other")
    told = capsys.readouterr().err
    assert "the judge FAILED its controls" in told and "shuffled 100 (at most 20)" in told


def test_failed_controls_may_end_the_stage(ollama, parameters, responses, tmp_path):
    strict = _change(parameters, on_failed_controls="fail")
    judge(responses, strict, state=tmp_path)
    ollama.score = lambda parts: 100
    with pytest.raises(UserError, match=r"FAILED its controls.*judge\.on_failed_controls"):
        judge(responses, strict, state=tmp_path / "other")


def test_repeated_questions_reach_the_server(ollama, parameters, responses, tmp_path):
    calls = iter(range(10_000))
    ollama.score = lambda parts: 91 + 9 * (next(calls) % 2)
    erratic, _ = judge(responses, parameters, state=tmp_path)
    assert erratic["controls/repeat_deviation"] > 3


def test_repeat_deviation_alone_fails_a_judge():
    controls = Controls(references=(0,), shuffled=((0, 1),), repeated=(0,))
    verdicts = [Verdict(value) for value in (100, 0, 80, 60)]
    metrics = controls.metrics(verdicts, [70.0, 0.0], minimum_coverage=1.0)
    assert metrics["controls/repeat_deviation"] == pytest.approx(10)
    assert metrics["controls/passed"] is False


def test_shuffled_references_are_never_the_entrys_own(responses):
    twins = [{**entry, "output": "same"} for entry in responses[:4]] + responses[4:]
    controls = draw_controls(twins, count=12, seed=1)
    assert len(controls.shuffled) == 12
    assert all(twins[i]["output"] != twins[j]["output"] for i, j in controls.shuffled)
    assert draw_controls(twins[:4], count=4, seed=1).shuffled == ()


def test_the_books_wording_is_the_books(ollama, parameters, responses, tmp_path):
    ollama.fault = lambda question, asked: "prose"
    with pytest.raises(UserError, match="not an integer"):
        judge(responses, _change(parameters, rubric="book"), state=tmp_path)
    message = {chat["messages"][0]["content"] for chat in ollama.chats}
    assert (
        "Given the input `Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nRewrite in the passive voice."
        "\n\n### Input:\nDog 8 chased the 8 cats.` and correct output `The 8 cats were chased by "
        "dog 8.`, score the model response `The 8 cats were chased.` on a scale from 0 to 100, "
        "where 100 is the best score. Respond with the integer number only."
    ) in message
    assert "format" not in ollama.chats[0] and len(ollama.chats[0]["messages"]) == 1


def test_reference_backend_needs_no_server(parameters, responses, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("opened a socket"))
    metrics, scores = judge(responses, _change(parameters, backend="reference"), state=tmp_path)
    assert metrics["backend"] == "reference" and metrics["coverage"] == 1
    assert metrics["score/mean"] == pytest.approx(sum(e["chrf"] for e in scores) / 12)
    assert metrics["reference/exact_match"] == pytest.approx(100 * 8 / 12)
    assert metrics["family/passive/score"] == pytest.approx(
        sum(entry["score"] for entry in scores[1::2]) / 6
    )
    assert "controls/passed" not in metrics and not list(tmp_path.iterdir())


def test_no_answers_and_answers_without_text_are_named(parameters, tmp_path):
    with pytest.raises(UserError, match="no answers"):
        judge([], parameters, state=tmp_path)
    with pytest.raises(UserError, match="answer 0 has no text 'response'"):
        judge([{"instruction": "", "output": ""}], parameters, state=tmp_path)


# What each injected fault leads to when it comes once, and when it comes every time, for one of
# twelve entries: the kind it is counted as, and requests sent for it with two retries allowed.
FAULTS = {
    "500": ("server error", 3),
    "slow": ("timeout", 3),
    "trickle": ("timeout", 3),
    "cut stream": ("cut stream", 3),
    "reset": ("connection lost", 3),
    "garbage": ("malformed protocol", 3),
    "refused": ("request refused", 1),
    "empty": ("empty", 3),
    "cut short": ("cut short", 3),
    "prose": ("not JSON", 3),
    "refusal": ("refusal", 3),
    "wrong schema": ("wrong schema", 3),
    "number as text": ("wrong schema", 3),
    "two scores": ("wrong schema", 3),
    "null": ("wrong schema", 3),
    "text null": ("wrong schema", 3),
    "101": ("out of range", 3),
}


REPLY_KINDS = {"empty", "cut short", "not JSON", "refusal", "wrong schema", "out of range"}


def _inject(ollama, fault: str, times: int) -> None:
    """The fault for entry 3's own question (not for controls, which have other candidates)."""
    chosen = "<candidate>\nMy own answer"
    ollama.fault = lambda question, asked: fault if chosen in question and asked < times else None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_retried_then_counted(ollama, parameters, responses, tmp_path, fault):
    kind, requests = FAULTS[fault]
    responses[3]["response"] = "My own answer"
    timeout = 0.4 if fault in ("slow", "trickle") else 5.0
    parameters = _change(parameters, timeout=timeout, control_samples=1)

    def asked() -> list[dict[str, Any]]:
        return [c for c in ollama.chats if "\nMy own answer" in c["messages"][-1]["content"]]

    _inject(ollama, fault, times=99)
    metrics, scores = judge(responses, parameters, state=tmp_path / "always")
    assert scores[3]["score"] is None and metrics["coverage"] == pytest.approx(11 / 12)
    assert [fault.split(":")[0] for fault in scores[3]["faults"]] == [kind] * requests
    assert metrics["score/mean"] == pytest.approx(
        sum(e["score"] for e in scores if e["score"] is not None) / 11
    )
    assert _row(fault, kind, requests) in DOCUMENT.read_text(encoding="utf-8")
    if requests == 1:
        return
    ollama.chats.clear()
    ollama._asked.clear()
    _inject(ollama, fault, times=1)
    metrics, scores = judge(responses, parameters, state=tmp_path / "once")
    assert metrics["coverage"] == 1 and scores[3]["score"] == 0
    seeds = [chat["options"]["seed"] for chat in asked()[:2]]
    assert seeds == [123, 123 + (kind in REPLY_KINDS)]  # a failed request is repeated as it was
    named = f"Your last reply was unusable: {kind}." in asked()[1]["messages"][-1]["content"]
    assert named == (kind in REPLY_KINDS)


def _row(fault: str, kind: str, requests: int) -> str:
    """The row of docs/judge.md, so that the document says what was seen here."""
    once = "scored on the second request" if requests > 1 else "not asked again"
    if kind in REPLY_KINDS:
        once += ", which names the fault"
    return f"| {fault} | {once} | unscored as `{kind}` after {requests} |"


def test_too_many_unscored_fail_the_stage(ollama, parameters, responses, tmp_path):
    ollama.fault = lambda question, asked: "101" if "Dog 1" in question else None
    with pytest.raises(UserError) as error:  # 1, 10 and 11, of which 11 is empty
        judge(responses, parameters, state=tmp_path)
    text = str(error.value)
    assert "scored 10 of 12" in text and "2 × out of range" in text and "0.9" in text


def test_nothing_scored_fails_whatever_the_minimum(ollama, parameters, responses, tmp_path):
    ollama.fault = lambda question, asked: "refusal"
    with pytest.raises(UserError, match="scored 0 of 11"):
        judge(responses[:11], _change(parameters, minimum_coverage=0.0), state=tmp_path)


def test_a_server_that_dies_ends_the_run(ollama, parameters, responses, tmp_path):
    def die(question: str, asked: int) -> str | None:
        if len(ollama.chats) == 5:
            ollama.shutdown()
            ollama.server_close()
            return "reset"
        return None

    ollama.fault = die
    with pytest.raises(UserError, match=r"went away .*start it and run again"):
        judge(responses, _change(parameters, requests_in_flight=1), state=tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 4


def test_a_prompt_that_was_cut_is_no_measurement(ollama, parameters, responses, tmp_path):
    responses[0]["response"] = "word " * 4000
    metrics, scores = judge(responses, parameters, state=tmp_path)
    assert scores[0]["score"] is None and metrics["coverage"] == pytest.approx(11 / 12)
    assert len(scores[0]["faults"]) == 1 and "raise judge.context_length" in scores[0]["faults"][0]
    fits = "word " * 2500  # 3,300 tokens of 4 bytes: more bytes than the window, yet read whole
    responses[0]["response"] = fits
    _, scores = judge(responses, parameters, state=tmp_path)
    assert scores[0]["score"] is not None
