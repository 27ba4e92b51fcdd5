"""A flipped bit is found before it is used, by name and with what to do."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from gptmill.errors import UserError
from gptmill.export.onnx import export_language_model
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.runtime.session import Generator
from gptmill.seal import SEAL, check_seal
from gptmill.tokenizer import train_byte_pairs
from gptmill.weights.folder import load_language_model, save_model


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `model`, and `onnx` made of it."""
    root = tmp_path_factory.mktemp("sealed")
    tokenizer = train_byte_pairs(["the cat sat on the mat " * 9], 280)
    torch.manual_seed(0)
    model = GPT2(GPT2Config(tokenizer.vocabulary_size, 16, 1, 2, 16))
    save_model(root / "model", model, tokenizer, provenance={})
    export_language_model(root / "model", root / "onnx", opset=20)
    return root


OPEN = {"model": load_language_model, "onnx": lambda folder: Generator(folder, 1)}
FILES = [("model", "model.safetensors"), ("model", "tokenizer.json"), ("model", "config.json"),
         ("onnx", "model.onnx"), ("onnx", "merges.txt")]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_flipped_bit_is_named(kind: str, name: str, sealed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sealed / kind, tmp_path / kind)
    OPEN[kind](folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) * 3 // 4] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        OPEN[kind](folder)
    if name != "config.json":  # a damaged one may already be refused as JSON
        assert f"{name} has other bytes than were written" in str(error.value)
        assert "dvc checkout" in str(error.value)


def test_the_list_is_what_sha256sum_reads(sealed: Path) -> None:
    for kind in OPEN:
        command = ["sha256sum", "--check", "--strict", SEAL]
        subprocess.run(command, cwd=sealed / kind, check=True, capture_output=True)
        listed = (sealed / kind / SEAL).read_text().splitlines()
        files = [path for path in (sealed / kind).rglob("*") if path.is_file()]
        assert len(listed) == len(files) - 1


def test_a_folder_of_others_is_taken_as_it_is(sealed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sealed / "model", tmp_path / "model")
    (folder / SEAL).unlink()
    (folder / "merges.txt").write_text("changed")
    check_seal(folder)
