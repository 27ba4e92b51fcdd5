"""The whole study on a model unlike the default: letters, no positions, no biases, ReLU."""

import json
from pathlib import Path

import pytest
import torch

from gptmill.data.corpus import write_documents
from gptmill.data.shards import write_tokens
from gptmill.data.splits import plan_splits
from gptmill.data.tokenizers import make_tokenizer
from gptmill.data.tokens import TokenSplit
from gptmill.embedded.stories import stories
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.params import Study, load
from gptmill.study import Subject, study
from gptmill.study.finding import Finding, small
from gptmill.tokenizer import train_vocabulary
from stages.study import write_findings


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    root = tmp_path_factory.mktemp("study")
    told = list(stories(seed=1, count=60))
    (root / "corpus").mkdir()
    write_documents(told, root / "corpus/documents.jsonl")
    tokenizer = train_vocabulary([story.text for story in told], "character", 100)
    plan = plan_splits(root / "corpus", validation_fraction=0.3, test_fraction=0.0, seed=1)
    write_tokens(plan, tokenizer, root / "tokens", shard_tokens=10**6)
    torch.manual_seed(0)
    config = GPT2Config(
        tokenizer.vocabulary_size, 16, 1, 2, 16,
        bias=False, activation="relu", tied_head=False, positions="none",
    )  # fmt: skip
    subject = Subject(
        GPT2(config, 0.3, 0.3).eval(),
        GPT2(config).eval(),
        tokenizer,
        TokenSplit(root / "tokens", "train"),
        TokenSplit(root / "tokens", "validation"),
    )
    return study(subject, Study(tokens=900, sentence_tokens=24, steps=20), seed=1)


def test_every_chapter_of_the_model_is_found(findings: list[Finding]) -> None:
    assert {finding.chapter for finding in findings} == {1, 2, 3, 4, 5, 7}
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names) == 16
    captions = {finding.name: finding.caption for finding in findings}
    assert "no position embedding" in captions["embeddings"]
    assert not any(caption.endswith(".") for caption in captions.values())


def test_a_sentence_fits_the_context(findings: list[Finding]) -> None:
    (reach,) = [finding for finding in findings if finding.name == "attention_reach"]
    assert reach.metrics["last_sees_tokens"] == 15  # with end-of-text before it, 16


def test_files_are_named_after_their_findings(findings: list[Finding], tmp_path: Path) -> None:
    write_findings(tmp_path / "plots", findings)
    written = json.loads((tmp_path / "plots/findings.json").read_text())
    assert [entry["name"] for entry in written] == [finding.name for finding in findings]
    for finding in findings:
        assert (tmp_path / f"plots/{finding.name}.png").read_bytes().startswith(b"\x89PNG")
        assert len((tmp_path / f"plots/{finding.name}.csv").read_text().splitlines()) > 1
    # Times are not among what is hashed.
    assert not [p for p in (tmp_path / "plots").glob("*.csv") if "seconds" in p.read_text()]


POEM = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
WORDS = {
    "the objectives", "windows and loss curves", "embeddings", "attention heads", "decoding",
}  # fmt: skip
THAI = "ฝนตกที่หมู่บ้านและเด็กเล่นน้ำในแม่น้ำ"


@pytest.mark.parametrize(
    ("text", "kind", "missing"),
    [
        (THAI * 50, "bpe", {"the objectives"}),
        ("ACGTTGCATCCAGTAA" * 100, "character", {"the objectives"}),
        ("The cat sat on the mat. " * 25, "bpe", {"the objectives", "windows and loss curves"}),
        (POEM * 60, "word", WORDS),
    ],
    ids=["Thai", "DNA", "600 bytes", "Chinese by words"],
)
def test_what_a_text_cannot_show_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, kind: str, missing: set[str]
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/text.txt").write_text(text)
    plan = plan_splits(tmp_path / "corpus", validation_fraction=0.05, test_fraction=0.05, seed=1)
    tokenizer = make_tokenizer(kind, plan, 300, load().pretrain.foundation)
    write_tokens(plan, tokenizer, tmp_path / "tokens", shard_tokens=10**6)
    capsys.readouterr()
    config = GPT2Config(tokenizer.vocabulary_size, 16, 1, 1, 8)
    subject = Subject(
        GPT2(config).eval(),
        GPT2(config).eval(),
        tokenizer,
        TokenSplit(tmp_path / "tokens", "train"),
        TokenSplit(tmp_path / "tokens", "validation"),
    )
    found = study(subject, Study(tokens=400, sentence_tokens=12, steps=20), seed=1)
    told = capsys.readouterr().out.splitlines()
    assert {line.split("cannot show ")[1].split(":")[0] for line in told} == missing
    assert all(": it needs " in line for line in told)
    assert len(found) == 16 - len(missing) - ("windows and loss curves" in missing)


def test_differences_near_nothing() -> None:
    assert [small(1.19e-7), small(0.0)] == ["1e-07", "0"]
