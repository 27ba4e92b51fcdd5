"""OpenAI's checkpoints, on files that TensorFlow wrote (golden/make_tensorflow_checkpoint.py)."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from gptmill.errors import UserError
from gptmill.files import read_json, sha256_tree, write_json
from gptmill.tokenizer import train_byte_pairs
from gptmill.weights.crc32c import crc32c, unmask
from gptmill.weights.foundation import read_foundation
from gptmill.weights.openai import load_openai, read_checkpoint
from gptmill.weights.tensorflow_bundle import TensorBundle

GOLDEN = Path(__file__).parent / "golden" / "tensorflow_gpt2"
DATA = "model.ckpt.data-00000-of-00001"


def golden_weights() -> dict[str, np.ndarray]:
    """The arrays that the golden files were made of, drawn again."""
    script: dict = {"__name__": "golden", "__file__": str(GOLDEN)}
    code = (GOLDEN.parent / "make_tensorflow_checkpoint.py").read_text()
    exec(compile(code, "make_tensorflow_checkpoint.py", "exec"), script)
    return script["weights"]()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The golden checkpoint with a tokenizer of as many entries."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN, checkpoint)
    tokenizer = train_byte_pairs(["the quick brown fox jumps over the lazy dog " * 9], 300)
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    shutil.copy(tmp_path / "saved" / "vocab.json", checkpoint / "encoder.json")
    shutil.copy(tmp_path / "saved" / "merges.txt", checkpoint / "vocab.bpe")
    return checkpoint


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_openai(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_every_tensor_as_tensorflow_wrote_it() -> None:
    bundle = TensorBundle(GOLDEN / "model.ckpt")
    expected = golden_weights()
    assert bundle.entries.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(bundle.array(name), value)


def test_the_book_s_dictionaries() -> None:
    settings, params = read_checkpoint(GOLDEN)
    expected = golden_weights()
    assert settings == {"n_vocab": 300, "n_ctx": 16, "n_embd": 16, "n_head": 2, "n_layer": 2}
    assert params.keys() == {"blocks", "wte", "wpe", "g", "b"}
    assert [block.keys() for block in params["blocks"]] == [{"ln_1", "attn", "ln_2", "mlp"}] * 2
    block = params["blocks"][1]
    np.testing.assert_array_equal(
        block["attn"]["c_attn"]["w"], expected["model/h1/attn/c_attn/w"][0]
    )
    np.testing.assert_array_equal(block["mlp"]["c_proj"]["b"], expected["model/h1/mlp/c_proj/b"])
    np.testing.assert_array_equal(params["g"], expected["model/ln_f/g"])


def test_logits_equal_transformers_on_the_same_arrays(folder: Path) -> None:
    model, tokenizer = load_openai(folder)
    theirs = GPT2LMHeadModel(
        TheirConfig(vocab_size=300, n_positions=16, n_embd=16, n_head=2, n_layer=2)
    ).eval()
    state = theirs.state_dict()
    for name, value in golden_weights().items():
        path = re.sub(r"^model/(h(\d+)/)?", lambda m: f"h.{m[2]}." if m[2] else "", name)
        path = path.replace("/g", ".weight").replace("/b", ".bias").replace("/w", ".weight")
        path = path if "." in path else f"{path}.weight"
        target = state[f"transformer.{path.replace('/', '.')}"]
        target.copy_(torch.from_numpy(value).reshape(target.shape))
    ids = torch.tensor([tokenizer.encode("the lazy fox")])
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits).abs().max() < 1e-5
    cropped, _ = load_openai(folder, context_length=8)
    with torch.no_grad():
        assert (cropped(ids[:, :8]) - theirs(ids[:, :8]).logits).abs().max() < 1e-5


def test_as_a_foundation(folder: Path) -> None:
    model, tokenizer, origin, _ = read_foundation("openai", str(folder), "", 8)
    assert origin == {"sha256": sha256_tree(folder)}
    assert model.config.context_length == 8
    assert tokenizer.decode(tokenizer.encode("lazy fox")) == "lazy fox"


@pytest.mark.parametrize("at", [0, 5_000, -1])
def test_a_flipped_bit_in_the_data(at: int, folder: Path) -> None:
    data = bytearray((folder / DATA).read_bytes())
    data[at] ^= 4
    (folder / DATA).write_bytes(data)
    assert "the checksum of model/" in refusal(folder)


def test_a_damaged_index(folder: Path) -> None:
    path = folder / "model.ckpt.index"
    whole = path.read_bytes()
    for at in (10, 500):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "the checksum of the block at byte 0 differs" in refusal(folder)
    path.write_bytes(whole[:-10])
    assert "does not end as a TensorFlow index does" in refusal(folder)
    path.write_bytes(whole[200:])
    assert "cannot be read" in refusal(folder)


def test_compressed_blocks_are_named(folder: Path) -> None:
    """TensorFlow writes none; another tool's would read as nonsense."""
    path = folder / "model.ckpt.index"
    data = bytearray(path.read_bytes())
    footer = data[-48:]
    # The handles of metadata and index block are at the footer's start; the first block is at 0.
    size = next(n for n in range(1, len(data)) if _is_block(data, n))
    data[size] = 1
    _sign(data, size)
    path.write_bytes(data)
    assert footer == data[-48:]
    assert "compressed" in refusal(folder)


def test_a_message_where_a_number_belongs(folder: Path) -> None:
    """Its checksum is right: another program may have written it."""
    path = folder / "model.ckpt.index"
    data = bytearray(path.read_bytes())
    header = bytes.fromhex("08 01 1a 02 08 01")  # one shard, version 1
    at = data.index(header)
    size = next(n for n in range(1, len(data)) if _is_block(data, n))
    data[at : at + 2] = bytes.fromhex("0a 04")  # the number of shards as four bytes
    _sign(data, size)
    path.write_bytes(data)
    assert "field 1 of a protobuf message is not a number" in refusal(folder)


def _sign(data: bytearray, size: int) -> None:
    """Write the checksum of the first block anew."""
    checksum = crc32c(bytes(data[: size + 1]))
    masked = (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    data[size + 1 : size + 5] = masked.to_bytes(4, "little")


def _is_block(data: bytearray, size: int) -> bool:
    stored = int.from_bytes(data[size + 1 : size + 5], "little")
    return data[size] == 0 and unmask(stored) == crc32c(bytes(data[: size + 1]))


def test_missing_and_truncated_files(folder: Path) -> None:
    data = (folder / DATA).read_bytes()
    (folder / DATA).write_bytes(data[:1000])
    assert f"{DATA} cannot be read: it ends at byte 1,000" in refusal(folder)
    (folder / DATA).write_bytes(b"")
    assert "it is empty" in refusal(folder)
    (folder / DATA).unlink()
    assert f"{DATA} does not exist" in refusal(folder)
    (folder / "model.ckpt.index").unlink()
    assert "model.ckpt.index does not exist" in refusal(folder)
    (folder / "hparams.json").unlink()
    assert "hparams.json does not exist" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 1}, "has model/h1/"),
        ({"n_layer": 3}, "lacks transformer.h.2."),
        ({"n_ctx": 32}, "is [16, 16] and the config asks for [32, 16]"),
        ({"n_head": 5}, "not a multiple of heads 5"),
        ({"n_embd": None}, "hparams.json"),
    ],
    ids=str,
)
def test_settings_that_disagree(changes: dict, message: str, folder: Path) -> None:
    path = folder / "hparams.json"
    write_json(path, read_json(path) | changes)
    assert message in refusal(folder)


def test_crc32c_is_the_standard_s() -> None:
    """RFC 3720, appendix B.4, and the check value of the catalogue of CRC algorithms."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@pytest.mark.parametrize("length", [1, 4, 65535, 65536, 65537, 65539, 131072, 200_001])
def test_crc32c_of_any_length(length: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length, np.uint8).tobytes()
    register = 0xFFFFFFFF
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    for octet in data:
        register = (register >> 8) ^ table[(register ^ octet) & 0xFF]
    assert crc32c(data) == register ^ 0xFFFFFFFF


def renamed(folder: Path, *names: str) -> Path:
    """The same checkpoint as TensorFlow's own saver names it, once for each name."""
    for name in names:
        for path in folder.glob("model.ckpt.*"):
            shutil.copy(path, folder / path.name.replace("model.ckpt", name))
    for path in folder.glob("model.ckpt.*"):
        path.unlink()
    return folder


def test_checkpoints_by_the_names_of_tensorflow_s_saver(folder: Path) -> None:
    expected = load_openai(folder)[0].state_dict()
    found = load_openai(renamed(folder, "model-1000"))[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("place", ["", "/content/checkpoint/run1/", "C:\\\\runs\\\\"])
def test_of_several_the_one_that_the_file_checkpoint_names(folder: Path, place: str) -> None:
    renamed(folder, "model-9", "model-1000")
    (folder / "model-9.index").write_bytes(b"not this one")
    assert "several checkpoints (model-1000, model-9)" in refusal(folder)
    text = f'model_checkpoint_path: "{place}model-1000"\nall_model_checkpoint_paths: "model-9"\n'
    (folder / "checkpoint").write_text(text)
    load_openai(folder)
    (folder / "checkpoint").write_text(text.replace("1000", "7"))
    assert "names none of them" in refusal(folder)
