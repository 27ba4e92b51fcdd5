"""Classification: padding, frozen layers, weights, and metrics against hand counts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import open_runtime
from gptmill.model.classifier import (
    GPT2Classifier,
    random_language_model,
    with_classification_head,
)
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.params import LowRank, Optimizer
from gptmill.reading import LongTexts, softmax
from gptmill.tasks.classify import (
    ClassificationData,
    ClassificationTask,
    choose_trainable,
    collate_labeled,
    mean_loss,
    predict,
)
from gptmill.tokenizer import train_vocabulary

CONFIG = GPT2Config(vocabulary_size=40, context_length=16, layers=3, heads=2, width=16)


OPTIMIZER = Optimizer(
    learning_rate=0.1, final_learning_rate=0.0, warmup_steps=0, weight_decay=0.0,
    beta1=0.9, beta2=0.99, gradient_clip=0.0, muon=0.0,
)  # fmt: skip


def test_padding_by_hand() -> None:
    batch = collate_labeled([([1, 2, 3], 1), ([4], 0)], padding=39, length=4)
    assert batch.inputs.tolist() == [[1, 2, 3, 39], [4, 39, 39, 39]]
    assert batch.mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("head", {"score"}),
        ("last_block", {"score", "ln_f", "h.2"}),
        ("last_two_blocks", {"score", "ln_f", "h.1", "h.2"}),
        ("all", {"score", "ln_f", "h.0", "h.1", "h.2", "wte", "wpe"}),
        ("lora", {"score", "h.0", "h.1", "h.2"}),
    ],
)
def test_only_the_chosen_layers_learn(trainable: str, expected: set[str]) -> None:
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    model = GPT2Classifier(CONFIG, 2)
    choose_trainable(model, trainable, LowRank(rank=2, alpha=4.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OPTIMIZER)
    for group in optimizer.param_groups:
        group["lr"] = OPTIMIZER.learning_rate
    batch = collate_labeled([([1, 2, 3], 1), ([4, 5], 0)], padding=39)
    ClassificationTask([1.0, 1.0], "last_token").loss(model, batch, runtime).backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= {name for name, p in model.named_parameters() if p.requires_grad}
    short = {name.removeprefix("transformer.") for name in moved}
    parts = {".".join(name.split(".")[: 2 if name.startswith("h.") else 1]) for name in short}
    assert parts == expected
    if trainable == "lora":
        assert {name.split(".")[-1] for name in short - {"score.weight"}} == {"up"}


def test_random_weights_keep_the_architecture_alone() -> None:
    torch.manual_seed(0)
    foundation = GPT2(CONFIG)
    model = with_classification_head(random_language_model(foundation.config), 2)
    assert model.config == CONFIG
    old = foundation.transformer.h[0].mlp.c_fc.weight
    new = model.transformer.h[0].mlp.c_fc.weight
    assert not torch.isclose(old, new).any()
    assert new.std().item() == pytest.approx(CONFIG.width**-0.5, rel=0.1)


def test_class_weights_as_torch_normalizes_them() -> None:
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    model = GPT2Classifier(CONFIG, 2)
    batch = collate_labeled([([1, 2, 3], 1), ([4, 5], 0), ([6], 0)], padding=39)
    task = ClassificationTask([0.6, 3.0], "last_token")
    with torch.no_grad():
        logits = task.logits(model, batch, runtime)
        ours = task.loss(model, batch, runtime).item() / task.targets(batch)
    reference = torch.nn.functional.cross_entropy(
        logits, torch.tensor(batch.labels), weight=torch.tensor([0.6, 3.0])
    )
    assert ours == pytest.approx(reference.item(), rel=1e-6)


def test_predictions_keep_their_order_and_ignore_padding() -> None:
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    model = GPT2Classifier(CONFIG, 2)
    task = ClassificationTask([1.0, 1.0], "last_token")
    texts = [([1, 2, 3, 4, 5], 0), ([6], 1), ([7, 8], 0)]
    together = predict(model, task, [collate_labeled(texts, 39)], runtime)
    alone = predict(model, task, [collate_labeled([text], 39) for text in texts], runtime)
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.fixture
def spam(tmp_path: Path) -> Path:
    """Three splits of few messages."""
    texts = ["win cash now", "see you", "a free prize for you today", "home"]
    (tmp_path / "labels.json").write_text('["ham", "spam"]')
    rows = "".join(f"{('ham', 'spam')[i % 2]},{text}\n" for i, text in enumerate(texts))
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text(f"label,text\n{rows}")
    return tmp_path


def read(
    spam: Path, readout: str, maximum_length: int = 0, long_texts: LongTexts = "head"
) -> tuple[ClassificationData, list]:
    """The data of a read-out, and each training text's whole ids."""
    tokenizer = train_vocabulary(["abcdefghijklmnopqrstuvwxyz "], "character", 40)
    data = ClassificationData(
        spam,
        tokenizer,
        maximum_length=maximum_length,
        context_length=CONFIG.context_length,
        readout=readout,
        long_texts=long_texts,
    )
    return data, [tokenizer.encode(text)[: CONFIG.context_length] for text in data.train.texts]


def test_the_first_token_is_read_where_it_stands(spam: Path) -> None:
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    model = GPT2Classifier(CONFIG, 2).eval()
    data, texts = read(spam, "first_token")
    task = ClassificationTask([1.0, 1.0], data.reading.readout)
    with torch.no_grad():
        whole = [model.score(model.transformer(torch.tensor([ids]))[0, 0]) for ids in texts]
    logits = data.logits(data.train, model, task, runtime)
    np.testing.assert_allclose(logits, torch.stack(whole).numpy(), atol=1e-6)


def test_padding_to_the_context_matters_to_the_books_readout_alone(spam: Path) -> None:
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    torch.manual_seed(0)
    model = GPT2Classifier(CONFIG, 2).eval()
    differs = {}
    for readout in ("last_token", "padded_last"):
        results = []
        for length in (14, 1000):  # the second is more than the context, and so the context
            data, _ = read(spam, readout, length)
            task = ClassificationTask([1.0, 1.0], data.reading.readout)
            results.append(data.logits(data.train, model, task, runtime)[[0, 1, 3]])
            width = data.collate(data.train.examples[:2]).inputs.shape[1]
            assert width == (min(length, 16) if readout == "padded_last" else 12)
        differs[readout] = abs(results[0] - results[1]).max()
    assert differs["last_token"] < 1e-6
    assert differs["padded_last"] > 1e-3


def test_windows_cover_a_long_text_and_their_logits_are_averaged(spam: Path) -> None:
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    torch.manual_seed(0)
    model = GPT2Classifier(CONFIG, 2).eval()
    data, _ = read(spam, "last_token", 10, "windows")
    tokenizer = train_vocabulary(["abcdefghijklmnopqrstuvwxyz "], "character", 40)
    whole = [tokenizer.encode(text) for text in data.train.texts]
    assert data.train.counts == [2, 1, 3, 1]  # of 12, 7, 26 and 4 characters
    assert data.cut == 2
    pieces = [ids for ids, _ in data.train.examples]
    assert pieces[:2] == [whole[0][:10], whole[0][2:]]
    assert pieces[3:6] == [whole[2][:10], whole[2][8:18], whole[2][16:]]
    task = ClassificationTask(data.class_weights, data.reading.readout)
    with torch.no_grad():
        each = [model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=int))[0].numpy()
                for ids in pieces]  # fmt: skip
    expected = [np.mean(each[:2], axis=0), each[2], np.mean(each[3:6], axis=0), each[6]]
    np.testing.assert_allclose(data.logits(data.train, model, task, runtime), expected, atol=1e-6)


def test_the_tail_is_the_last_tokens(spam: Path) -> None:
    head, texts = read(spam, "last_token", 5)
    tail, _ = read(spam, "last_token", 5, "tail")
    assert [ids for ids, _ in head.train.examples] == [ids[:5] for ids in texts]
    tokenizer = train_vocabulary(["abcdefghijklmnopqrstuvwxyz "], "character", 40)
    whole = [tokenizer.encode(text) for text in head.train.texts]
    assert [ids for ids, _ in tail.train.examples] == [ids[-5:] for ids in whole]


def test_probabilities_of_large_logits() -> None:
    logits = np.array([[1000.0, 1000.0], [0.0, np.log(3)]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), [[0.5, 0.5], [0.25, 0.75]], rtol=1e-6)
    expected = -(np.log(0.5) + np.log(0.75)) / 2
    assert mean_loss(logits, np.array([0, 1])) == pytest.approx(expected, rel=1e-6)
