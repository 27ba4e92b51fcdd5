"""A profile run as a user would: own text and own model, in a clone of the project."""

import json
from pathlib import Path

import pytest
import torch

from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import load_tokenizer, train_byte_pairs
from gptmill.weights.folder import load_language_model, save_model
from tests.pipeline.conftest import Project, clone

pytestmark = pytest.mark.slow

TEXT = "The cat sat on the mat, and the dog ran over the hill to see it. "
SMALL = {
    "runtime.threads": 1,
    "pretrain.model.context_length": 16,
    "pretrain.epochs": 2,
    "pretrain.sample_every": 40,
    "pretrain.evaluation_stride": 16,
    "pretrain.sampling.max_new_tokens": 8,
}


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`transfer` on a model of 40 positions, to the end of pretraining."""
    project = clone(tmp_path_factory.mktemp("transfer"))
    torch.manual_seed(0)
    tokenizer = train_byte_pairs([TEXT * 4], 300)
    model = GPT2(GPT2Config(tokenizer.vocabulary_size, 40, 1, 2, 16, activation="relu"))
    save_model(project.root / "made", model, tokenizer, provenance={})
    for file in (project.root / "made").iterdir():
        file.rename(project.root / "own/model" / file.name)
    (project.root / "own/text/train.txt").write_text(TEXT * 40)
    project.run("gptmill", "profile", "transfer")
    project.set_parameters(SMALL)
    project.run("dvc", "repro", "pretrain")
    return project


def test_own_text_continues_an_own_model(continued: Project) -> None:
    root = continued.root
    start, end = (load_language_model(root / f) for f in ("own/model", "models/pretrained"))
    # Architecture and positions are the model's, dropout is the profile's.
    assert (end.config.context_length, end.config.activation) == (40, "relu")
    assert end.config.dropout == 0.1
    assert not torch.equal(start.lm_head.weight, end.lm_head.weight)
    ids = load_tokenizer(root / "models/pretrained").encode(TEXT)
    assert ids == load_tokenizer(root / "own/model").encode(TEXT)

    metrics = json.loads((root / "metrics/pretrain.json").read_text())
    counts = json.loads((root / "metrics/tokenize.json").read_text())
    windows = counts["train/tokens"] // 16
    batches = -(-windows // 4)  # profiles/transfer.yaml has four windows to a step
    assert metrics["train/tokens"] == 2 * batches * 4 * 16
    curve = (root / "plots/pretrain/evaluation.csv").read_text().splitlines()
    loss = curve[0].split(",").index("validation/loss")
    assert float(curve[-1].split(",")[loss]) < float(curve[1].split(",")[loss])
    provenance = json.loads((root / "models/pretrained/provenance.json").read_text())
    assert provenance["foundation"].keys() == {"sha256"}


def test_dvc_notices_another_text_and_another_model(continued: Project) -> None:
    def changed() -> set[str]:
        status = continued.run("dvc", "status", "--json", "--with-deps", "pretrain").stdout
        return set(json.loads(status))

    assert changed() == set()
    text = continued.root / "own/text/train.txt"
    before = text.read_text()
    text.write_text(before + TEXT)
    assert "download@corpus" in changed()
    text.write_text(before)
    config = continued.root / "own/model/config.json"
    config.write_text(config.read_text() + "\n")
    assert {"tokenize", "pretrain"} <= changed()


def test_git_ignores_what_is_the_users(continued: Project) -> None:
    assert continued.run("git", "status", "--short", "own").stdout == ""
    listed = continued.run("git", "ls-files", "own").stdout.split()
    assert [Path(name).name for name in listed] == ["README.md"] * 4
