"""Mean and standard error per case, against SciPy's; what is not finished is not counted."""

import csv
from pathlib import Path

import pytest
from scipy.stats import sem

from gptmill.errors import UserError
from gptmill.search.cases import Sweep
from gptmill.search.experiments import Experiment
from gptmill.search.summary import choose_metric, plot, summarize, terminal_table, write_table

LOSS = "pretrain/validation/loss"
SWEEP = Sweep(name="s", cases={"small": {}, "large": {}, "huge": {}}, seeds=[1, 2, 3])
LOSSES = {"small": [2.0, 2.1, 2.3], "large": [1.0, 1.1, 1.3]}


def experiment(loss: float, state: str = "success") -> Experiment:
    return Experiment("abc", state, None, {}, {LOSS: loss, "judge/score/mean": 50.0})


@pytest.fixture
def known() -> dict[str, Experiment]:
    found = {
        f"s-{case}-seed{seed}": experiment(loss)
        for case, losses in LOSSES.items()
        for seed, loss in enumerate(losses, start=1)
    }
    return found | {"s-huge-seed1": experiment(9.0, "failed"), "else": experiment(5.0)}


def test_mean_and_standard_error_are_scipys(known: dict, tmp_path: Path) -> None:
    summary = summarize(SWEEP.runs(), known, "pretrain")
    write_table(summary, tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["metric"], row["case"]) for row in rows] == [(LOSS, "small"), (LOSS, "large")]
    for row, losses in zip(rows, LOSSES.values()):
        assert float(row["mean"]) == pytest.approx(sum(losses) / 3)
        assert float(row["standard_error"]) == pytest.approx(sem(losses))
        assert row["values"] == " ".join(map(str, losses))
        assert row["seeds"] == "3"


def test_the_table_holds_cases_against_the_first(known: dict) -> None:
    lines = terminal_table(summarize(SWEEP.runs(), known, "pretrain"), LOSS).splitlines()
    assert " ".join(lines[2].split()) == "small 3 2.1333 ± 0.088"
    assert " ".join(lines[3].split()) == "large 3 1.1333 ± 0.088 -1, larger than noise"
    assert " ".join(lines[4].split()) == "huge 0 –"


def test_one_seed_has_no_error(known: dict) -> None:
    one = {name: value for name, value in known.items() if name.endswith("seed1")}
    table = terminal_table(summarize(SWEEP.runs(), one, "pretrain"), LOSS)
    assert "±" not in table.splitlines()[2]
    assert "too few seeds" in table


def test_only_the_stage_that_ran_counts(known: dict) -> None:
    assert set(summarize(SWEEP.runs(), known, "pretrain").values) == {LOSS}
    assert "judge/score/mean" in summarize(SWEEP.runs(), known, "").values


def test_the_metric_is_the_usual_one_or_the_wanted(known: dict) -> None:
    summary = summarize(SWEEP.runs(), known, "")
    assert choose_metric(summary, "") == LOSS
    assert choose_metric(summary, "judge/score/mean") == "judge/score/mean"
    with pytest.raises(UserError, match=f"there are: judge/score/mean, {LOSS}"):
        choose_metric(summary, "loss")
    with pytest.raises(UserError, match="no run of the sweep has finished"):
        choose_metric(summarize(SWEEP.runs(), {}, ""), "")


def test_the_plot_is_an_image(known: dict, tmp_path: Path) -> None:
    plot(summarize(SWEEP.runs(), known, "pretrain"), LOSS, tmp_path / "new/plot.png")
    assert (tmp_path / "new/plot.png").read_bytes().startswith(b"\x89PNG")
