"""Executions, revisions and experiments side by side: real git, real MLflow."""

import json
import math
import random
import subprocess
from pathlib import Path

import pytest
from scipy.stats import ttest_ind_from_stats

from gptmill.compare.compare import (
    better,
    compare,
    compare_sides,
    group_repetitions,
    larger_than_noise,
    last_samples,
    repeated,
    short,
    signed,
    terminal_table,
    write_page,
)
from gptmill.compare.sides import Side, listing, open_side
from gptmill.errors import UserError
from gptmill.tracking import Stage


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_results(rate: str, loss: float, answer: str) -> None:
    """What a run leaves: parameters, metrics, a curve, a sample, and answers in DVC's cache."""
    Path("params.yaml").write_text(
        f"pretrain: {{optimizer: {{learning_rate: {rate}}}, steps: 9}}\n"
    )
    for folder in ("metrics", "plots/pretrain", "src", "stages"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    Path("src/code.py").write_text("pass\n")
    Path("stages/pretrain.py").write_text("pass\n")
    Path("metrics/pretrain.json").write_text(json.dumps({"validation/loss": loss, "none": None}))
    Path("plots/pretrain/training.csv").write_text(f"step,train/loss\n1,7.0\n9,{loss}\n")
    Path("plots/pretrain/samples.json").write_text(json.dumps([{"step": 9, "text": f"At {rate}"}]))
    responses = [{"instruction": "Add 1 and 1.", "input": "", "response": answer}]
    folder = [{"md5": cache(responses), "relpath": "responses.json"}]
    digest = cache(folder, ".dir")
    Path("dvc.lock").write_text(
        "stages:\n  respond: {outs: [{path: data/responses, md5: " + digest + "}]}\n"
        "  tokenize: {outs: [{path: data/tokens, md5: tokens" + rate.replace(".", "") + "}]}\n"
    )


def cache(value: object, ending: str = "") -> str:
    text = json.dumps(value)
    digest = f"{abs(hash(text)):032x}"[:32] + ending
    path = Path(".dvc/cache/files/md5") / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return digest


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit `before`, a DVC experiment `brave-newt`, and changed files in the workspace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    git("init", "-q")
    git("config", "user.email", "test@example.org")
    git("config", "user.name", "test")
    Path(".gitignore").write_text(".dvc/\n.state/\n*.html\n")
    write_results("0.001", 2.0, "2")
    git("add", "-A")
    git("commit", "-qm", "before")
    git("tag", "before")
    write_results("0.003", 1.5, "two")
    git("commit", "-qam", "experiment")
    git("update-ref", "refs/exps/ab/cdef/brave-newt", "HEAD")
    git("reset", "-q", "--hard", "before")
    write_results("0.01", 1.0, "3")
    return tmp_path


def row(rows: list, name: str):
    return next(row for row in rows if row.name == name)


def test_revision_experiment_and_workspace_line_up(repository: Path) -> None:
    found = compare(["before", "brave-newt", "workspace"])
    (rate,) = found.parameters
    assert rate.name == "pretrain.optimizer.learning_rate"
    assert rate.values == ["0.001", "0.003", "0.01"]
    loss = row(found.metrics, "pretrain/validation/loss")
    assert loss.values == [2.0, 1.5, 1.0]
    assert loss.differences == [-0.5, -1.0]
    assert row(found.data, "data/tokens").values == ["tokens0001", "tokens0003", "tokens001"]
    assert [r.name for r in found.data] == ["data/tokens"], "answers are no data"
    assert {r.name for r in found.code} == {"git_commit"}, "the code itself is the same"
    assert found.sides[1].curves["pretrain/train/loss"] == [(1, 7.0), (9, 1.5)]


def test_the_page_shows_curves_samples_and_answers(repository: Path) -> None:
    write_page(compare(["before", "brave-newt"]), repository / "page.html")
    text = (repository / "page.html").read_text()
    assert "A from 7 at 1 to 2 at 9; B from 7 at 1 to 1.5 at 9" in text
    assert "At 0.003" in text
    assert "Add 1 and 1." in text and ">two</div>" in text
    assert "http" not in text and "<script" not in text


def test_the_terminal_table_shows_what_differs(repository: Path) -> None:
    text = terminal_table(compare(["before", "workspace"]))
    assert "A = before, git revision" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "pretrain.optimizer.learning_rate 0.001 0.01" in lines
    assert "pretrain/validation/loss 2 1 -1" in lines
    narrow = terminal_table(compare(["before", "workspace"]), width=40)
    assert max(len(line) for line in narrow.splitlines() if "loss" in line) <= 40


def test_the_terminal_says_what_each_side_is_and_shows_samples(repository: Path) -> None:
    text = terminal_table(compare(["before", "brave-newt"]))
    assert "B = brave-newt, DVC experiment" in text
    assert "pretrain/samples, the last\n  A, step 9: At 0.001\n  B, step 9: At 0.003" in text


def test_samples_of_other_prompts_are_not_compared() -> None:
    sides = [
        Side(name, "made up", {"pretrain.prompt": name}, {}, {}, {}, {}, {"pretrain/s": [(1, "x")]})
        for name in ("Once", "One day")
    ]
    assert last_samples(sides) == []
    assert len(last_samples([sides[0], sides[0]])) == 1


def test_executions_are_found_by_id_name_and_age(repository: Path, fresh_database: Path) -> None:
    assert listing() == "no executions yet"
    Path("mlflow.db").write_bytes(fresh_database.read_bytes())
    for rate, name in (("0.001", "slow"), ("0.003", "fast")):
        write_results(rate, 2.0, "2")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DVC_EXP_NAME", name)
            with Stage("pretrain", {"rate": rate}) as stage:
                for step in (0, 10):
                    stage.log(step, {"train/loss": 5.0 - step / 10})
                stage.text("samples", 10, f"told {name}")
                stage.metrics({"validation/loss": float(rate), "backend": name})
            with Stage("report", {}) as stage:
                stage.summarize(Path("metrics"), Path("dvc.lock"))
    # Both stages of an execution run by hand are executions of their own.
    assert listing().count("\n") == 3
    slow = open_side("latest~3")
    fast = open_side("mlflow:" + id_of(listing(), "fast"))
    assert (slow.metrics["pretrain/backend"], fast.metrics["pretrain/backend"]) == ("slow", "fast")
    found = compare_sides([slow, fast])
    assert row(found.parameters, "pretrain.optimizer.learning_rate").values == ["0.001", "0.003"]
    assert fast.curves["pretrain/train/loss"] == [(0, 5.0), (10, 4.0)]
    assert fast.samples["pretrain/samples"] == [(10, "told fast")]
    summary = open_side("latest")
    assert summary.metrics["pretrain/validation/loss"] == 2.0
    assert summary.data == {"data/tokens": "tokens0003"}


def id_of(lines: str, name: str) -> str:
    """The id of the earliest execution of a name."""
    return [line.split()[0] for line in lines.splitlines() if line.endswith(name)][-1]


def test_what_means_nothing_is_said_with_what_there_is(repository: Path) -> None:
    with pytest.raises(UserError, match="'nonsense' is not a git revision"):
        open_side("nonsense")
    with pytest.raises(UserError, match="two or more"):
        compare(["before"])
    with pytest.raises(UserError, match="nor a DVC experiment"):
        open_side("git:nonsense")


def side(rate: float, seed: int, loss: float, code: str = "a") -> Side:
    parameters = {"rate": str(rate), "runtime.seed": str(seed)}
    return Side(f"{rate} {seed}", "made up", parameters, {"loss": loss}, {}, {"code": code})


def test_sides_that_differ_in_seeds_alone_are_repetitions() -> None:
    sides = [side(1, 1, 0), side(2, 1, 0), side(1, 2, 0), side(1, 3, 0, code="b")]
    assert group_repetitions(sides) == [[0, 2], [1], [3]]
    sides[2].parameters["runtime.threads"] = "1"
    assert group_repetitions(sides) == [[0, 2], [1], [3]], "threads are no experiment"


@pytest.mark.parametrize("seed", range(30))
def test_noise_is_judged_as_scipy_judges_it(seed: int) -> None:
    draw = random.Random(seed)
    counts = draw.randint(2, 6), draw.randint(2, 6)
    first, other = ([draw.gauss(shift, 1) for _ in range(n)] for shift, n in zip((0, 2), counts))
    ours, theirs = repeated(first), repeated(other)
    p = ttest_ind_from_stats(
        ours.mean, ours.error * math.sqrt(ours.count), ours.count,
        theirs.mean, theirs.error * math.sqrt(theirs.count), theirs.count, equal_var=False,
    ).pvalue  # fmt: skip
    # Degrees of freedom are rounded down, which may call a p just below 5% noise.
    if not 0.03 < p < 0.05:
        assert larger_than_noise(ours, theirs) == bool(p < 0.05)


def test_one_run_says_nothing_of_noise() -> None:
    assert larger_than_noise(repeated([1.0]), repeated([2.0, 2.1])) is None
    assert larger_than_noise(repeated([1.0, 1.0]), repeated([2.0, 2.0])) is True


def test_repetitions_are_shown_with_their_verdict() -> None:
    sides = [side(1, s, 1.0 + s / 100) for s in range(3)] + [
        side(2, s, 2.0 + s / 100) for s in range(3)
    ]
    text = terminal_table(compare_sides(sides))
    assert "1.01 ± 0.0058" in text
    assert "larger than noise" in text
    assert "Welch's t-test at 95%" in text


def test_better_is_told_by_the_name() -> None:
    assert better("pretrain/validation/loss", -0.1) is True
    assert better("finetune_classifier/test/accuracy", -0.1) is False
    assert better("judge/score/mean", 3.0) is True
    assert better("tokenize/train/tokens", 5.0) is None
    assert better("pretrain/validation/loss", 0.0) is None


def test_cells_are_short() -> None:
    cells = [short(v) for v in (None, 1.0, 424957, 0.123456789, math.nan, "a" * 40, "reference")]
    assert cells == ["–", "1", "424,957", "0.12346", "nan", "a" * 10, "reference"]
    assert [signed(v) for v in (None, 0.0, 0.5, -2.0)] == ["–", "=", "+0.5", "-2"]


def test_names_break_where_their_parts_meet_and_stay_text(tmp_path: Path) -> None:
    sides = [Side(n, "made up", {}, {"a.b/c_d": 1.0, "<i>": 2.0}, {}, {}) for n in "AB"]
    write_page(compare_sides(sides), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert ">a.<wbr>b/<wbr>c_<wbr>d<" in text
    assert ">&lt;i&gt;<" in text
