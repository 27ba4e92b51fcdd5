"""params.yaml and every profile: strict, complete, and read to the last value."""

import shutil
from pathlib import Path

import pytest

from gptmill.errors import UserError
from gptmill.meanings import describe
from gptmill.params import PARAMS_FILE, load, parse, read_yaml
from gptmill.profiles import PROFILES, apply_profile, list_profiles
from gptmill.sources import Embedded


@pytest.fixture
def values() -> dict:
    return read_yaml(PARAMS_FILE)


def test_the_shipped_file_fits() -> None:
    assert load().profile == "calibration"


def test_an_unknown_key_names_the_nearest(values: dict) -> None:
    values["pretrain"]["optimizer"]["learning_rte"] = 1.0e-3
    with pytest.raises(UserError, match=r"optimizer\.learning_rte: unknown key.*'learning_rate'"):
        parse(values, "params.yaml")


def test_a_missing_key_is_named(values: dict) -> None:
    del values["tokenize"]["kind"]
    with pytest.raises(UserError, match=r"tokenize\.kind: missing"):
        parse(values, "params.yaml")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("pretrain", "steps", 0),
        ("pretrain", "steps", "many"),
        ("pretrain", "steps", 1.5),
        ("tokenize", "kind", "sentencepiece"),
        ("tokenize", "validation_fraction", 1.5),
        ("runtime", "compile", "yes"),
        ("respond", "sampling.min_p", 1.5),
        ("respond", "sampling.repetition_penalty", 0.0),
        ("respond", "sampling.stop_strings", [1]),
        ("respond", "sampling.stop_strings", [""]),
        ("respond", "sampling.stop_strings", "###"),
    ],
)
def test_a_wrong_value_is_named(values: dict, section: str, key: str, value: object) -> None:
    *parents, last = key.split(".")
    place = values[section]
    for parent in parents:
        place = place[parent]
    place[last] = value
    shown = value[0] if isinstance(value, list) else value
    with pytest.raises(UserError, match=rf"{section}\.{key}.*: .*{shown}"):
        parse(values, "params.yaml")


def test_every_fault_is_listed_at_once(values: dict) -> None:
    values["judge"] = {"backend": "reference"}
    with pytest.raises(UserError) as caught:
        parse(values, "params.yaml")
    assert "judge.model: missing" in str(caught.value)
    assert "judge.retries: missing" in str(caught.value)


def test_scientific_notation_is_a_number_as_dvc_reads_it(tmp_path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("rate: 1e-3\n")
    assert read_yaml(path) == {"rate": 1.0e-3}


def test_every_value_has_a_meaning() -> None:
    rows = describe()
    known = {"epochs", "requests_in_flight", "prompt_style"}  # the name says it
    silent = [name for name, _, meaning in rows if not meaning and name.split(".")[-1] not in known]
    assert not silent


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params.yaml and profiles/ to write into."""
    shutil.copy(PARAMS_FILE, tmp_path)
    shutil.copytree(PROFILES, tmp_path / PROFILES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [name for name, _ in list_profiles()])
def test_every_profile_fits_and_is_undone_by_another(project: Path, name: str) -> None:
    before = load()
    apply_profile(name)
    assert load().profile == name
    apply_profile("calibration")
    assert load() == before


@pytest.mark.parametrize(
    "name", ["alice", "book", "library", "python", "shakespeare_gpu", "transfer"]
)
def test_what_others_trained_by_adamw_is_not_trained_by_muon(project: Path, name: str) -> None:
    """The default profile's Muon does not reach into a recipe through a value left out."""
    apply_profile(name)
    own = read_yaml(project / PROFILES / f"{name}.yaml")
    sections = [section for section in own if "optimizer" in (own[section] or {})]
    assert sections and all(getattr(load(), s).optimizer.muon == 0 for s in sections)


def test_a_profile_keeps_comments_and_changes_values(project: Path) -> None:
    apply_profile("library")
    text = (project / PARAMS_FILE).read_text()
    assert text.startswith("# What will run.")
    assert load().pretrain.model.width == 256
    assert load().download.classification.path == "profiles/manifests/sms_spam.json"


def test_the_shipped_params_are_the_calibration_profile(project: Path) -> None:
    values = read_yaml(PARAMS_FILE)
    assert values.pop("profile") == "calibration"
    assert values == read_yaml(PROFILES / "calibration.yaml")


def test_an_unknown_profile_names_the_nearest(project: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'library'"):
        apply_profile("librery")


def test_a_broken_profile_changes_nothing(project: Path) -> None:
    (project / PROFILES / "broken.yaml").write_text("# broken\npretrain: {step: 3}\n")
    before = (project / PARAMS_FILE).read_bytes()
    with pytest.raises(UserError, match=r"profile broken.*\n.*pretrain\.step: unknown key"):
        apply_profile("broken")
    assert (project / PARAMS_FILE).read_bytes() == before


def test_manifests_of_every_profile_exist() -> None:
    for name, _ in list_profiles():
        for dataset in read_yaml(PROFILES / f"{name}.yaml").get("download", {}).values():
            assert dataset["source"] != "manifest" or Path(dataset["path"]).exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pretrain.optimizer.beta2", 1.0),
        ("pretrain.optimizer.gradient_clip", float("inf")),
        ("pretrain.optimizer.learning_rate", float("nan")),
        ("pretrain.model.dropout", 1.0),
        ("pretrain.model.layers", 10**19),
        ("finetune_classifier.training.batch_size", 10**9),
        ("tokenize.vocabulary_size", 10**12),
        ("runtime.threads", 100_000),
        ("runtime.seed", 2**64),
        ("judge.timeout", float("inf")),
    ],
)
def test_values_that_would_hang_or_abort_are_refused(values: dict, name: str, value: float) -> None:
    *sections, key = name.split(".")
    section = values
    for part in sections:
        section = section[part]
    section[key] = value
    with pytest.raises(UserError, match=rf"{name}: input should be"):
        parse(values, "params.yaml")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pretrain": {"evaluation_stride": 129}}, r"pretrain: evaluation_stride 129 is more than"),
        ({"pretrain": {"model": {"heads": 3}}}, r"pretrain\.model: heads 3 does not divide"),
        ({"tokenize": {"validation_fraction": 0.0}}, "tokenize: validation_fraction is 0"),
        ({"tokenize": {"test_fraction": 0.95}}, "tokenize: .*leave nothing to train on"),
        ({"prepare_classification": {"train_fraction": 0.9}}, "prepare_classification: .*a test"),
        ({"prepare_instructions": {"test_fraction": 0.15}}, "prepare_instructions: .*validate"),
        ({"load_gpt2": {"classifier": {"context_length": 4096}}}, "classifier.context_length 4096"),
    ],
)
def test_parameters_are_checked_against_each_other(values: dict, changes: dict, told: str) -> None:
    def lay(target: dict, new: dict) -> None:
        for key, value in new.items():
            if isinstance(value, dict):
                lay(target[key], value)
            else:
                target[key] = value

    lay(values, changes)
    with pytest.raises(UserError, match=told):
        parse(values, "params.yaml")


def test_another_source_brings_its_own_keys(project: Path) -> None:
    apply_profile("own")
    assert load().download.corpus.path == "own/text"
    assert load().download.corpus.instead.count == 8000
    apply_profile("calibration")
    assert load().download.corpus == Embedded(source="embedded", count=8000, seed=1)


@pytest.mark.parametrize(
    ("dataset", "value", "told"),
    [
        ("corpus", {"source": "embeded", "count": 1, "seed": 1}, r"corpus: .*'embedded', 'files'"),
        ("corpus", {"source": "embedded", "coutn": 1, "seed": 1},
         r"corpus\.coutn: unknown key; did you mean 'count'"),
        ("classification", {"source": "stdlib"}, r"classification: .*'stdlib'.*'embedded'"),
        ("instructions", {"source": "manifest"}, r"download\.instructions\.path: missing"),
        ("corpus", {"source": "huggingface", "repository": "a/b", "revision": "", "path": "*.txt",
                    "text": "", "separator": "", "encoding": ""}, r"corpus\.revision: string"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_told(dataset: str, value: dict, told: str) -> None:
    values = read_yaml(PARAMS_FILE)
    values["download"][dataset] = value
    with pytest.raises(UserError, match=told):
        parse(values, "params.yaml")
