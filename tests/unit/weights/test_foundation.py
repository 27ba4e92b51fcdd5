"""What pretraining starts from: random weights, or a folder that is gone on with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptmill.data.tokenizers import make_tokenizer
from gptmill.errors import UserError
from gptmill.files import sha256_tree
from gptmill.model.gpt2 import GPT2
from gptmill.params import Pretrain, load
from gptmill.tokenizer import BytePairTokenizer, load_tokenizer, train_byte_pairs
from gptmill.weights.foundation import starting_model, watched_folder

Write = Callable[..., Path]


def section(folder: Path | None, **model: object) -> Pretrain:
    """The default section, continuing a folder if there is one."""
    values = load().pretrain.model_dump()
    if folder is not None:
        values["foundation"] |= {"source": "folder", "location": str(folder)}
    values |= {"evaluation_stride": 16}
    values["model"] |= {"context_length": 16, **model}
    return Pretrain.model_validate(values)


def test_without_a_foundation_weights_are_random(tokenizer: BytePairTokenizer) -> None:
    torch.manual_seed(0)
    asked = section(None, layers=3, heads=2, width=16)
    model, origin = starting_model(asked, tokenizer)
    assert (model.config.layers, model.config.context_length) == (3, 16)
    assert model.transformer.wte.weight.std().item() == pytest.approx(0.2, rel=0.1)
    assert origin == {}
    assert watched_folder(asked.foundation) == {}


def test_a_folder_is_continued_with_its_own_architecture(
    build: Callable[..., GPT2], write: Write, tokenizer: BytePairTokenizer
) -> None:
    before = build(activation="relu")
    folder = write(before)
    digest = sha256_tree(folder)
    asked = section(folder, layers=7, dropout=0.3)
    model, origin = starting_model(asked, tokenizer)
    assert (model.config.layers, model.config.activation) == (2, "relu")
    assert model.config.context_length == 24  # its positions stay, whatever the window
    assert origin == {"foundation": {"sha256": digest}}
    assert watched_folder(asked.foundation) == {"foundation": folder}
    ids = torch.arange(20)[None]
    torch.testing.assert_close(model.eval()(ids), before(ids), atol=1e-5, rtol=0)
    # Dropout is the parameters', in the modules and in what is saved; training writes elsewhere.
    assert model.config.dropout == model.transformer.config.dropout == 0.3
    dropped = model.train()(ids)
    assert not torch.allclose(dropped, before(ids), atol=0.1)
    dropped.sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert sha256_tree(folder) == digest


def test_dropout_of_a_foundation_can_be_off(
    build: Callable[..., GPT2], write: Write, tokenizer: BytePairTokenizer
) -> None:
    model, _ = starting_model(section(write(build(dropout=0.5)), dropout=0.0), tokenizer)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(model.train()(ids), model.eval()(ids))


def test_a_window_longer_than_the_context_is_refused(
    model: GPT2, write: Write, tokenizer: BytePairTokenizer
) -> None:
    with pytest.raises(UserError, match=r"context_length: 25 tokens .* knows 24 positions"):
        starting_model(section(write(model), context_length=25), tokenizer)


def test_another_tokenizer_is_refused(model: GPT2, write: Write) -> None:
    text = "Some other words altogether, with pairs that nobody saw in the first one's text. "
    other = train_byte_pairs([text * 4], 300)
    assert other.vocabulary_size == load_tokenizer(write(model)).vocabulary_size
    with pytest.raises(UserError, match=r"another tokenizer .* tokenize\.kind to foundation"):
        starting_model(section(write(model)), other)


def test_the_foundations_tokenizer_is_taken(
    model: GPT2, write: Write, tokenizer: BytePairTokenizer
) -> None:
    start = section(write(model)).foundation
    taken = make_tokenizer("foundation", None, 5, start)
    assert taken.encode("Every effort") == tokenizer.encode("Every effort")
    with pytest.raises(UserError, match=r"foundation needs a pretrain\.foundation"):
        make_tokenizer("foundation", None, 5, section(None).foundation)
