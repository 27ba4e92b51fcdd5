"""Several corpora in one training: shares of rows, each in its own order, resumed exactly."""

import json

import numpy as np
import pytest

from gptmill.data.mixture import parts
from gptmill.data.shards import write_tokens
from gptmill.data.splits import CUT, plan_splits, split_documents
from gptmill.data.tokens import TokenSplit
from gptmill.engine.runtime import open_runtime
from gptmill.errors import UserError
from gptmill.params import load
from gptmill.sources import Mixed
from gptmill.tasks.language_model import split_likelihood, training_batches
from gptmill.tasks.pretraining import Pretraining
from gptmill.tokenizer import train_vocabulary

MIXTURE = [
    Mixed(name="small", documents="own/a/*", weight=3.0),
    Mixed(name="large", documents="*", weight=1.0),
]
SMALL, LARGE = "abcd", "wxyz"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """40 documents of a to d, 160 of w to z, one after the other in turns."""
    folder = tmp_path_factory.mktemp("mixture")
    chance = np.random.default_rng(1)
    with (folder / "documents.jsonl").open("w") as file:
        for number in range(200):
            place, letters = ("own/a", SMALL) if number % 5 == 0 else ("own/b", LARGE)
            text = "".join(letters[i] for i in chance.integers(0, 4, 50 + number % 40))
            row = {"id": f"{place}/{number}", "text": text, "nats": None}
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def planned(corpus):
    return plan_of(corpus, MIXTURE)


def plan_of(folder, mixture):
    shares = {"validation_fraction": 0.2, "test_fraction": 0.0}
    return plan_splits(folder, **shares, seed=1, mixture=mixture)


@pytest.fixture(scope="module")
def written(planned, tmp_path_factory):
    tokenizer = train_vocabulary([SMALL + LARGE], "character", 20)
    folder = tmp_path_factory.mktemp("tokens") / "out"
    write_tokens(planned, tokenizer, folder, shard_tokens=700, workers=2)
    return folder, tokenizer


def test_each_part_is_its_corpus_documents_one_after_the_other(planned, written):
    folder, tokenizer = written
    for name in ("train", "validation"):
        whole = TokenSplit(folder, name)
        corpora = parts(whole)
        assert [(part.name, part.weight) for part in corpora] == [("small", 3.0), ("large", 1.0)]
        assert sum(map(len, corpora)) == len(whole)
        assert sum(part.bytes for part in corpora) == whole.bytes
        documents = list(split_documents(planned, name))
        for part, place in zip(corpora, ("own/a", "own/b"), strict=True):
            texts = [d.text for d in documents if d.id.startswith(place)]
            expected = [[*tokenizer.encode(text), tokenizer.end_of_text] for text in texts]
            assert part.gather(np.array([0]), len(part))[0].tolist() == [
                id for ids in expected for id in ids
            ]
            starts = np.cumsum([0, *map(len, expected)])[:-1]
            assert part.document_starts.tolist() == starts.tolist()


@pytest.mark.parametrize("rows", ["windows", "documents"])
def test_rows_come_by_weight_and_never_mix_corpora(written, rows):
    folder, tokenizer = written
    batches = training_batches(TokenSplit(folder, "train"), rows, 8, 16, seed=1)
    small = set(tokenizer.encode(SMALL))
    large = set(tokenizer.encode(LARGE))
    counts = [0, 0]
    for _ in range(150):
        inputs, targets = batches.next_batch()
        assert inputs.shape == targets.shape and len(inputs) == 8
        for row in targets:
            letters = set(row.tolist()) - {-100, tokenizer.end_of_text}
            assert letters <= small or letters <= large
            counts[letters <= large] += 1
    # 1,200 draws: five standard deviations are 0.063.
    assert counts[0] / sum(counts) == pytest.approx(0.75, abs=0.063)


@pytest.mark.parametrize("rows", ["windows", "documents"])
def test_a_mixture_resumes_where_it_was_and_depends_on_the_seed(written, rows):
    def fresh(seed=1):
        return training_batches(TokenSplit(written[0], "train"), rows, 4, 16, seed)

    whole, resumed = fresh(), fresh()
    for _ in range(60):
        whole.next_batch()
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _ in range(40):
        for expected, found in zip(whole.next_batch(), resumed.next_batch(), strict=True):
            assert (expected == found).all()
    assert whole.state_dict()["0.epoch"] > whole.state_dict()["1.epoch"]
    assert (fresh(1).next_rows() != fresh(2).next_rows()).any()


def test_an_epoch_of_a_corpus_has_each_row_once(written):
    batches = training_batches(TokenSplit(written[0], "train"), "documents", 4, 1000, seed=1)
    small = batches.corpora[0]
    rows = np.concatenate([batches.next_rows() for _ in range(60)])
    of_small = rows[rows < 1 << 40]
    count = small.batches_per_epoch
    assert len(of_small) > 2 * count
    assert sorted(of_small[:count].tolist()) == list(range(count))


def test_what_belongs_to_no_corpus_or_is_missing_is_told(corpus, written, tmp_path):
    with pytest.raises(UserError, match=r"'own/b/1' belongs to none of own/a/\*"):
        plan_of(corpus, MIXTURE[:1])
    poems = Mixed(name="poems", documents="own/c/*", weight=1.0)
    plan = plan_of(corpus, [poems, *MIXTURE])
    with pytest.raises(UserError, match=r"poems has no document in train: 'own/c/\*'"):
        write_tokens(plan, written[1], tmp_path / "t", shard_tokens=99)
    assert not (tmp_path / "t").exists()


def test_without_a_mixture_nothing_is_written_of_one(corpus, written, tmp_path):
    write_tokens(plan_of(corpus, []), written[1], tmp_path / "t", shard_tokens=700)
    assert "mixture" not in json.loads((tmp_path / "t/index.json").read_text())
    assert not list((tmp_path / "t").rglob("sources.npy"))
    assert parts(TokenSplit(tmp_path / "t", "train")) == []


def test_each_corpus_has_its_share_held_out_and_related_texts_stay_together(tmp_path):
    """One book is cut; what shares a part with a document of another corpus goes where that is."""
    chance = np.random.default_rng(2)

    def prose(words):
        return " ".join(f"w{word}" for word in chance.integers(0, 5000, words))

    shared = prose(60)
    texts = {"a/0": prose(3000)} | {f"b/{n}": prose(400) for n in range(20)}
    texts |= {f"c/{n}": f"{prose(400)} {shared if n in (3, 4) else prose(60)}" for n in range(20)}
    texts["b/7"] += f" {shared}"
    with (tmp_path / "documents.jsonl").open("w") as file:
        for id, text in texts.items():
            file.write(json.dumps({"id": id, "text": text, "nats": None}) + "\n")
    mixture = [Mixed(name=name, documents=f"{name}/*", weight=1.0) for name in "abc"]
    plan = plan_of(tmp_path, mixture)
    sizes = np.array([len(text) for text in texts.values()])
    assert plan.splits[0] == CUT and plan.cuts[0] == pytest.approx((0.8, 0.2, 0.0))
    for source in (1, 2):
        here = plan.sources == source
        held = here & (plan.splits == 1)
        assert sizes[held].sum() / sizes[here].sum() == pytest.approx(0.2, abs=0.05)
    related = [list(texts).index(name) for name in ("b/7", "c/3", "c/4")]
    assert len(set(plan.splits[related].tolist())) == 1


def test_validation_has_each_corpus_loss_and_the_whole_is_their_mean(written):
    folder = written[0]
    parameters = load()
    model = parameters.pretrain.model.model_copy(
        update={"layers": 1, "heads": 2, "width": 16, "context_length": 16}
    )
    section = parameters.pretrain.model_copy(update={"model": model, "evaluation_tokens": 10**6})
    runtime = open_runtime(**dict(parameters.runtime))
    recipe = Pretraining(section, folder, runtime, 1)
    found = recipe.evaluate()
    whole = TokenSplit(folder, "validation")
    expected = split_likelihood(recipe.model, whole, 16, 16, runtime).loss
    assert found["validation/loss"] == pytest.approx(expected, rel=1e-6)
    losses = [found[f"validation/{name}/loss"] for name in ("small", "large")]
    assert min(losses) < expected < max(losses)
