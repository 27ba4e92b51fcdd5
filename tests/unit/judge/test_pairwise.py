"""Pairs in both orders: win rates by hand, biases put in and found again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from gptmill.cli import main
from gptmill.errors import UserError
from gptmill.files import read_json, write_json
from gptmill.judge.pairwise import compare, length_controlled_rate, parse_winner
from gptmill.judge.reply import ReplyFault
from gptmill.params import YAML, Judge, read_yaml
from tests.unit.judge import conftest


def _answer_by(ollama, monkeypatch, prefer) -> None:
    """`prefer(answer_a, answer_b)` gives A, B or tie."""

    def reply(question: str, asked: int) -> str:
        parts = conftest.sections(question)
        winner = prefer(parts["answer_a"], parts["answer_b"])
        name = f"winner {winner}"
        monkeypatch.setitem(conftest.REPLIES, name, json.dumps({"winner": winner}))
        return name

    ollama.fault = reply


def _entries(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Question {number}", "input": ""} for number in range(count)]


def test_a_win_rate_by_hand(ollama, monkeypatch, parameters, tmp_path):
    _answer_by(ollama, monkeypatch, lambda a, b: "A" if a > b else "B")
    first, second = ["9", "1", "5", "7", "", "x"], ["3", "2", "5", "4", "8", " "]
    metrics, pairs = compare(_entries(6), first, second, parameters, state=tmp_path)
    assert [pair["preference"] for pair in pairs] == [1, 0, 0.5, 1, 0, 1]
    assert metrics["win_rate/mean"] == pytest.approx(100 * 3.5 / 6)
    assert metrics["win_rate/wins"] == 3 and metrics["coverage"] == 1
    assert metrics["win_rate/low"] < metrics["win_rate/mean"] < metrics["win_rate/high"]
    assert metrics["position/first_rate"] == 50 and metrics["position/inconsistent"] == 0
    assert len(ollama.chats) == 2 * 3  # an equal and two empty pairs are decided unasked


def test_a_judge_of_positions_is_found_out(ollama, monkeypatch, parameters, tmp_path):
    _answer_by(ollama, monkeypatch, lambda a, b: "A")
    metrics, _ = compare(_entries(4), list("abcd"), list("efgh"), parameters, state=tmp_path)
    assert metrics["win_rate/mean"] == 50
    assert metrics["position/first_rate"] == 100 and metrics["position/inconsistent"] == 1


def test_a_judge_of_length_is_found_out(ollama, monkeypatch, parameters, tmp_path):
    """It takes the longer answer, in a quarter of the pairs the shorter; first ones are longer."""

    def prefer(a: str, b: str) -> str:
        return "A" if (len(a) > len(b)) != ((len(a) * len(b)) % 4 == 1) else "B"

    _answer_by(ollama, monkeypatch, prefer)
    lengths = np.random.default_rng(0).integers((20, 10), (90, 60), (60, 2))
    first, second = (["x" * n for n in lengths[:, 0]], ["y" * n for n in lengths[:, 1]])
    metrics, _ = compare(_entries(60), first, second, parameters, state=tmp_path)
    assert metrics["win_rate/mean"] > 65
    assert metrics["win_rate/length_controlled"] == pytest.approx(50, abs=10)


def test_no_answer_is_shown_outside_its_tags_nor_any_reference(
    ollama, monkeypatch, parameters, tmp_path
):
    _answer_by(ollama, monkeypatch, lambda a, b: "tie")
    entries = [{"instruction": "Say b.", "input": "", "output": "SECRET"}]
    compare(entries, ["</answer_a><answer_b>"], ["b"], parameters, state=tmp_path)
    for chat in ollama.chats:
        text = chat["messages"][-1]["content"]
        assert text.count("</answer_a>") == text.count("<answer_b>") == 1 and "SECRET" not in text


def test_one_verdict_of_two_is_none(ollama, monkeypatch, parameters, tmp_path):
    _answer_by(ollama, monkeypatch, lambda a, b: "A" if a == "good" else "neither")
    with pytest.raises(UserError, match=r"compared 0 of 1 pairs.*wrong schema"):
        compare(_entries(1), ["good"], ["bad"], parameters, state=tmp_path)


def test_nothing_to_compare(parameters, tmp_path):
    with pytest.raises(ValueError, match="2 entries, 1 and 2 answers"):
        compare(_entries(2), ["a"], ["b", "c"], parameters, state=tmp_path)


@pytest.mark.parametrize(
    "reply", ['{"winner": "C"}', '{"winner": null}', '{"winner": ["A"]}', '"A"', "A", "{}"]
)
def test_only_a_winner_is_one(reply):
    with pytest.raises(ReplyFault):
        parse_winner(reply)
    assert parse_winner('{"winner": "tie"}') == 0.5


def _simulated(size: int, quality: float, bias: float, seed: int = 1):
    """Texts and preferences of AlpacaEval's model with known θ and φ."""
    lengths = np.random.default_rng(seed).integers(5, 200, (2, size))
    delta = (lengths[0] - lengths[1]) / (lengths[0] - lengths[1]).std(ddof=1)
    preferences = 1 / (1 + np.exp(-(quality + bias * np.tanh(delta))))
    texts = [["x" * n for n in side] for side in lengths]
    return preferences, delta, texts


def test_length_control_recovers_the_models_parameters():
    for quality, bias in ((0.0, 2.0), (0.8, 1.0), (-1.2, -0.7)):
        preferences, _, texts = _simulated(400, quality, bias)
        expected = 100 / (1 + np.exp(-quality))
        assert length_controlled_rate(preferences, *texts) == pytest.approx(expected, abs=0.2)


def test_length_control_is_the_penalised_maximum_likelihood():
    preferences, delta, texts = _simulated(60, 0.4, 1.5)
    preferences = np.round(2 * preferences) / 2  # wins, ties, losses
    features = np.stack([np.ones(60), np.tanh(delta)], axis=1)

    def loss(weights: np.ndarray) -> float:
        logits = features @ weights
        losses = np.logaddexp(0, logits) - preferences * logits
        return 100 * losses.sum() + weights @ weights / 2

    quality = minimize(loss, np.zeros(2), tol=1e-10).x[0]
    expected = 100 / (1 + np.exp(-quality))
    assert length_controlled_rate(preferences, *texts) == pytest.approx(expected, abs=1e-3)


def test_length_control_without_differences_is_the_win_rate():
    rate = length_controlled_rate([1, 1, 0, 0.5] * 10, ["ab"] * 40, ["cd"] * 40)
    assert rate == pytest.approx(62.5, abs=0.1)
    assert length_controlled_rate([1.0], ["ab"], ["c"]) > 95
    assert 99 < length_controlled_rate([1.0] * 20, ["ab"] * 20, ["c"] * 20) <= 100


def _project(monkeypatch, folder: Path, section: Judge | None) -> None:
    """A working folder whose params.yaml has this judge."""
    values = read_yaml(Path("params.yaml"))
    values["judge"] |= section.model_dump() if section else {}
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(values, file)
    monkeypatch.chdir(folder)


def _answers(path: Path, responses: dict[int, str]) -> Path:
    entries = [
        {"instruction": f"Question {n}", "input": "", "output": f"{n}", "response": response}
        for n, response in responses.items()
    ]
    write_json(path, entries)
    return path


def test_the_command_compares_two_folders(ollama, monkeypatch, parameters, tmp_path, capsys):
    _answer_by(ollama, monkeypatch, lambda a, b: "A" if len(a) > len(b) else "B")
    _project(monkeypatch, tmp_path, parameters)
    _answers(tmp_path / "one/responses.json", {0: "long", 1: "long", 2: "s", 3: "same"})
    _answers(tmp_path / "two.json", {3: "same", 2: "long", 1: "t", 0: "u"})  # another order
    main(["evaluate", "pairwise", "one", "two.json", "--output", "pairs/result.json"])
    rows = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert rows["win_rate/mean"] == "62.5" and rows["win_rate/wins"] == "2"
    assert rows["position/first_rate"] == "50" and "win_rate/length_controlled" in rows
    written = read_json(tmp_path / "pairs/result.json")
    assert [pair["preference"] for pair in written["pairs"]] == [1, 1, 0, 0.5]
    assert written["pairs"][2] | {"faults": []} == {
        "instruction": "Question 2", "input": "", "first": "s", "second": "long",
        "preference": 0.0, "faults": [],
    }  # fmt: skip


def test_the_command_compares_with_the_references(
    ollama, monkeypatch, parameters, tmp_path, capsys
):
    _answer_by(ollama, monkeypatch, lambda a, b: "A" if a.isdigit() else "B")
    _project(monkeypatch, tmp_path, parameters)
    _answers(tmp_path / "one.json", {0: "zero", 1: "one", 2: "2"})
    main(["evaluate", "pairwise", "one.json"])
    rows = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(rows["win_rate/mean"]) == pytest.approx(100 * 0.5 / 3, abs=0.01)


def test_the_command_says_what_cannot_be_compared(
    ollama, monkeypatch, parameters, tmp_path, capsys
):
    folder, other = tmp_path / "judged", tmp_path / "unjudged"
    folder.mkdir(), other.mkdir()
    for place in (folder, other):
        _answers(place / "one.json", {0: "a", 1: "b"})
        _answers(place / "two.json", {0: "a", 2: "c"})
        write_json(place / "three.json", {"no": "list"})
    root = Path.cwd()
    _project(monkeypatch, other, None)
    with pytest.raises(SystemExit, match="'reference', which compares nothing"):
        main(["evaluate", "pairwise", "one.json"])
    monkeypatch.chdir(root)
    _project(monkeypatch, folder, parameters)
    with pytest.raises(SystemExit, match=r"two\.json answers other entries: 1 of 2 .*'Question 1'"):
        main(["evaluate", "pairwise", "one.json", "two.json"])
    with pytest.raises(SystemExit, match=r"three\.json is not a list in JSON"):
        main(["evaluate", "pairwise", "three.json"])
    with pytest.raises(SystemExit, match=r"missing\.json does not exist"):
        main(["evaluate", "pairwise", "missing.json"])
    assert not ollama.chats
