"""Matrix files: what they expand to, and what is refused before anything is queued."""

from pathlib import Path

import pytest

from gptmill.errors import UserError
from gptmill.search.cases import Sweep, check, merged, read_sweep, reference


def sweep(**changes: object) -> Sweep:
    values = {
        "name": "rates",
        "stage": "pretrain",
        "seeds": [1, 2],
        "cases": {"as it is": {}, "high": {"pretrain.optimizer.learning_rate": 1e-2}},
    }
    return Sweep.model_validate(values | changes)


def test_every_case_meets_every_seed_seeds_fastest() -> None:
    runs = sweep().runs()
    assert [run.name for run in runs] == [
        "rates-as-it-is-seed1",
        "rates-as-it-is-seed2",
        "rates-high-seed1",
        "rates-high-seed2",
    ]
    assert runs[3].overrides == {"pretrain.optimizer.learning_rate": 1e-2, "runtime.seed": 2}
    assert (runs[3].case, runs[3].seed) == ("high", 2)


def test_names_are_what_git_takes() -> None:
    assert reference("seeds-lr 1.5e-3 / ~x..lock-seed1") == "seeds-lr-1_5e-3-x__lock-seed1"


def test_a_sound_sweep_passes() -> None:
    check(sweep())
    check(sweep(alone=True))
    check(sweep(stage=""))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": {"a": {"pretrain.optimzer.learning_rate": 1.0}}}, "did you mean 'pretrain.opt"),
        ({"cases": {"a": {"pretrain.steps": "many"}}}, "case 'a'.*\n.*pretrain.steps"),
        ({"cases": {"a": {"pretrain.steps": 0}}}, "greater than or equal to 1"),
        ({"stage": "pretraining"}, "no stage 'pretraining'"),
        ({"stage": "", "alone": True}, "needs a stage"),
        (
            {"alone": True, "cases": {"a": {"tokenize.vocabulary_size": 300}}},
            "does not read tokenize.vocabulary_size",
        ),
        ({"seeds": [1, 1]}, "two runs would have the name rates-as-it-is-seed1"),
        ({"cases": {"a b": {}, "a/b": {}}}, "two runs would have the name rates-a-b-seed1"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(sweep(**changes))


def test_merging_leaves_the_tree_alone() -> None:
    tree = {"a": {"b": 1, "c": 2}}
    assert merged(tree, {"a.b": 3}) == {"a": {"b": 3, "c": 2}}
    assert tree == {"a": {"b": 1, "c": 2}}


def test_a_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: x\ncases: {a: {pretrain.steps: 3}}\nseeds: [1]\nstages: pretrain\n")
    with pytest.raises(UserError, match=r"is not a sweep:\n  stages: Extra inputs"):
        read_sweep(path)
    path.write_text("name: x\ncases: {a: {pretrain.optimizer.learning_rate: 1e-3}}\nseeds: [1]\n")
    assert read_sweep(path).cases["a"]["pretrain.optimizer.learning_rate"] == 0.001


@pytest.mark.parametrize("path", sorted(Path("experiments").glob("*.yaml")), ids=str)
def test_the_shipped_matrices_fit_the_parameters(path: Path) -> None:
    found = read_sweep(path)
    check(found)
    differing = {tuple(sorted(case.items())) for case in found.cases.values()}
    assert len(differing) == len(found.cases), "two cases are the same"
