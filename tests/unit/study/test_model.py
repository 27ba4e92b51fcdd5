"""Loss, embeddings, decoding and sizes: each against a count or another library."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from gptmill.model.config import GPT2Config, gpt2_config
from gptmill.model.gpt2 import GPT2
from gptmill.study.decoding import DRAWS, decoding
from gptmill.study.embeddings import embeddings, neighbor_similarity, principal_components
from gptmill.study.loss import cross_entropy, target_probabilities
from gptmill.study.sizes import memory, model_sizes
from gptmill.tokenizer import train_vocabulary

TOKENIZER = train_vocabulary(["a b c d e f g h i j k l"], "word", 100)
CONFIG = GPT2Config(TOKENIZER.vocabulary_size, 16, 1, 2, 16)


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(CONFIG, 0.4, 0.4).eval()


def test_cross_entropy_from_probabilities(model: GPT2) -> None:
    ids = torch.tensor([3, 1, 4, 1, 5])
    with torch.no_grad():
        logits = model(ids[None])[0].double().numpy()
    by_hand = [
        math.exp(logits[t][target]) / sum(math.exp(v) for v in logits[t])
        for t, target in enumerate([1, 4, 1, 5])
    ]
    assert target_probabilities(model, ids).tolist() == pytest.approx(by_hand, rel=1e-5)
    torch.manual_seed(0)
    untrained = GPT2(CONFIG).eval()
    found = cross_entropy({"untrained": untrained, "trained": model}, ids, list("abcde"), 1.0)
    metrics = found.metrics
    assert metrics["loss"] == pytest.approx(-np.log(by_hand).mean(), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["difference_to_library"] < 1e-6
    assert metrics["untrained_loss"] == pytest.approx(math.log(14), abs=0.1)
    assert "10.82" in found.caption  # ln 50,257


def test_principal_components_are_scikit_learns() -> None:
    table = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)
    plane, share = principal_components(table)
    pca = PCA(2).fit(table.double().numpy())
    expected = pca.transform(table.double().numpy())
    np.testing.assert_allclose(np.abs(plane), np.abs(expected), atol=1e-6)
    assert share == pytest.approx(pca.explained_variance_ratio_.sum())
    assert (plane.gather(0, plane.abs().argmax(0, keepdim=True)) > 0).all()


def test_embeddings_are_a_lookup_and_positions_may_be_absent(model: GPT2) -> None:
    torch.manual_seed(1)
    ids, frequent = torch.arange(10), {1: "b", 2: "C", 3: "."}
    found = embeddings(GPT2(CONFIG), model, ids, frequent)
    assert found.metrics["lookup_max_difference"] == 0
    assert len(found.figure.axes) == 4
    bare = GPT2(GPT2Config(CONFIG.vocabulary_size, 16, 1, 2, 16, positions="none"))
    found = embeddings(bare, bare, ids, frequent)
    assert len(found.figure.axes) == 2
    assert "no position embedding" in found.caption


def test_neighbors_alike_have_cosine_one() -> None:
    assert neighbor_similarity(torch.ones(5, 3)) == pytest.approx(1)
    assert neighbor_similarity(torch.tensor([[1.0, 0], [0, 1], [-1, 0]])) == pytest.approx(0)


def test_decoding_keeps_fewer_and_sharpens(model: GPT2) -> None:
    found = decoding(model, TOKENIZER, list(range(9)), seed=0)
    top = {row["way"]: row["probability"] for row in reversed(found.rows)}  # the likeliest of each
    order = ["temperature 2", "temperature 1", "temperature 0.5", "greedy"]
    assert sorted(order, key=top.get) == order
    assert top["greedy"] == 1
    kept = [row["probability"] for row in found.rows if row["way"] == "top-k 3"]
    assert sum(p > 0 for p in kept) == 3 and sum(kept) == pytest.approx(1)
    distinct = found.metrics
    assert (
        distinct["greedy_distinct_texts"] == 1 < distinct["temperature_2_distinct_texts"] <= DRAWS
    )


def test_sizes_are_the_published_ones() -> None:
    small = memory(gpt2_config("124M"))
    assert small["parameters"] == 124_439_808
    # The book's 163,009,536 leaves out the biases of queries, keys and values.
    assert small["parameters_untied"] == 163_009_536 + 12 * 3 * 768
    assert small["float32_gib"] == pytest.approx(124_439_808 * 4 / 2**30)
    found = model_sizes(CONFIG)
    assert found.metrics["1558M_parameters"] == 1_557_611_200
    assert [row["size"] for row in found.rows] == ["124M", "355M", "774M", "1558M", "own"]
