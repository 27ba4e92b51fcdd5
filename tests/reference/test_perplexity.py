"""`gptmill perplexity` against the loop of transformers' documentation, on a folder of theirs."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gptmill.cli import main
from gptmill.tokenizer import train_byte_pairs

WORDS = "every effort moves you and the quick brown fox jumps over the lazy dog while rain falls"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, sharp enough to be far from uniform, as `transformers` writes it."""
    path = tmp_path_factory.mktemp("theirs")
    train_byte_pairs([WORDS * 4], 300).save(path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words, order = WORDS.split(), torch.randperm(900, generator=torch.Generator().manual_seed(1))
    path.write_text(" ".join(words[int(i) % len(words)] for i in order) + " – naïve.\n")
    return path


@torch.no_grad()
def documented(folder: Path, text: str, window: int, stride: int) -> tuple[float, int]:
    """Mean nats and their count: "Perplexity of fixed-length models", line for line.

    But for the count of a window's targets, from which the page subtracts one in every window,
    though only the first window loses one to the shift.
    """
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    encodings = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    total, count, previous = 0.0, 0, 0
    for begin in range(0, encodings.shape[1], stride):
        end = min(begin + window, encodings.shape[1])
        inputs = encodings[:, begin:end]
        targets = inputs.clone()
        targets[:, : -(end - previous)] = -100
        scored = int((targets[:, 1:] != -100).sum())
        total += model(inputs, labels=targets).loss.item() * scored
        count += scored
        previous = end
        if end == encodings.shape[1]:
            break
    return total / count, count


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 63), (40, 7)])
def test_the_documented_method_to_four_digits(
    window: int, stride: int, folder: Path, text: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["perplexity", "--model", str(folder), "--text", str(text),
          "--window", str(window), "--stride", str(stride)])  # fmt: skip
    rows = {line[:16].strip(): line[17:] for line in capsys.readouterr().out.splitlines()}
    loss, count = documented(folder, text.read_text(), window, stride)
    assert int(rows["tokens scored"]) == count
    content = text.read_text()
    expected = {
        "nats per token": loss,
        "perplexity": math.exp(loss),
        "bits per token": loss / math.log(2),
        "bits per byte": loss * count / math.log(2) / len(content.encode()),
        "bits per word": loss * count / math.log(2) / len(content.split()),
    }
    for name, value in expected.items():
        assert float(rows[name]) == pytest.approx(value, rel=2e-5), name
