"""What fuzzing and people found: each input once raised another error than a `UserError`."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptmill.data.corpus import documents
from gptmill.data.own_files import LeftOut
from gptmill.data.own_instructions import write_own_instructions
from gptmill.data.tables import read_rows
from gptmill.errors import UserError
from gptmill.likelihood import LARGEST_LOSS, perplexity
from gptmill.profiles import apply_profile
from gptmill.tasks.language_model import Likelihood
from gptmill.tracking.journal import _event
from gptmill.weights.openai import load_openai
from tests.fuzz.readers import openai_folder, read_tokens, token_folder

DEEP = "[" * 100_000


def test_a_cell_nested_deeper_than_the_stack(tmp_path: Path) -> None:
    (tmp_path / "chats.csv").write_text(f"conversations\n{DEEP}\n")
    with pytest.raises(UserError, match="no instruction entry"):
        write_own_instructions(
            [tmp_path / "chats.csv"], tmp_path / "out.json", encoding="", left_out=LeftOut()
        )


@pytest.mark.parametrize("metadata", [{"info": {"features": []}}, {"info": None}, DEEP])
def test_metadata_of_parquet_that_names_no_labels(tmp_path: Path, metadata: object) -> None:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    table = pa.table({"text": ["a"], "label": [0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": text}), tmp_path / "x.parquet")
    assert read_rows(tmp_path / "x.parquet") == [{"text": "a", "label": 0}]


@pytest.mark.parametrize(
    "line",
    [DEEP, '{"id": "0", "text": 5, "nats": null}', '{"id": "0", "text": "a", "nats": "x"}',
     '{"id": "0", "text": "\\ud800", "nats": 1.0}'],
)  # fmt: skip
def test_documents_that_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "documents.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"line 1 is not a document"):
        list(documents(tmp_path))


@pytest.mark.parametrize(("key", "told"), [("tokens", "add up"), ("bytes", "sums")])
def test_totals_that_are_not_the_shards(tmp_path: Path, key: str, told: str) -> None:
    token_folder(tmp_path)
    index = json.loads((tmp_path / "tokens/index.json").read_text())
    index["splits"]["train"][key] += 1
    (tmp_path / "tokens/index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=told):
        read_tokens(tmp_path)


def test_a_token_outside_the_vocabulary(tmp_path: Path) -> None:
    token_folder(tmp_path)
    path = tmp_path / "tokens/train/00000.bin"
    path.write_bytes(b"\x01\x0c" + path.read_bytes()[2:])
    with pytest.raises(UserError, match="has the token 3073, and the vocabulary ends at 279"):
        read_tokens(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("n_ctx", None), ("n_vocab", 1.5), ("n_layer", 10**30)])
def test_settings_of_openai_that_are_no_sizes(tmp_path: Path, key: str, value: object) -> None:
    openai_folder(tmp_path)
    settings = json.loads((tmp_path / "hparams.json").read_text()) | {key: value}
    (tmp_path / "hparams.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=key):
        load_openai(tmp_path)


def test_a_line_of_a_journal_without_its_checksum() -> None:
    assert _event(DEEP.encode()) is None


def test_a_profile_over_broken_parameters(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("a: [1\nb: {")
    with pytest.raises(UserError, match=r"params\.yaml is not valid YAML"):
        apply_profile("alice", tmp_path / "params.yaml")


def test_a_loss_whose_perplexity_no_float_holds() -> None:
    found = Likelihood(nats=7200.0, tokens=9, bytes=9, words=9).metrics()
    assert found["loss"] == 800
    assert found["perplexity"] == perplexity(LARGEST_LOSS) < float("inf")
