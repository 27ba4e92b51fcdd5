import math

import numpy as np
import pytest
import torch

from gptmill.errors import UserError
from gptmill.export import parity
from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.export.parity import (
    Passage,
    classifier_reference,
    instruction_passages,
    measure_classifier,
    measure_language_models,
    require_parity,
    text_passages,
)
from gptmill.export.quantize import METHODS
from gptmill.prompt import format_prompt
from gptmill.weights.folder import load_language_model

PROMPTS = ["the cat sat", "the dog ran over the hill and the mat", "a mat on"]
TEXTS = ["the cat sat", "the dog ran over", "hill and mat", "on the mat", "sat"]


def test_a_faithful_export_agrees(language_model, language_model_onnx):
    passages = text_passages(PROMPTS, language_model)
    (measured,) = measure_language_models(
        [language_model_onnx], language_model, passages, greedy_steps=64, threads=1
    )
    require_parity({f"lm/{key}": value for key, value in measured.items()}, 1e-3)
    assert measured["greedy_agreement"] == 1.0
    assert abs(measured["perplexity_increase"]) < 1e-5
    parts = [measured[f"{kind}_difference"] for kind in ("prefill", "step", "ragged")]
    assert measured["max_abs_difference"] == max(parts)
    assert 0 < min(parts) <= max(parts) < 1e-4


def test_folders_side_by_side_measure_what_each_measures_alone(
    language_model, language_model_onnx, make_language_model, tmp_path
):
    export_language_model(
        language_model, tmp_path / "rounded", opset=20, layers=METHODS["weights4"]
    )
    export_language_model(make_language_model(seed=1), tmp_path / "other", opset=20)
    folders = [language_model_onnx, tmp_path / "rounded", tmp_path / "other"]
    passages = text_passages(PROMPTS, language_model)
    together = measure_language_models(folders, language_model, passages, 10, threads=1)
    alone = [measure_language_models([f], language_model, passages, 10, 1)[0] for f in folders]
    assert together == alone
    assert len({measured["perplexity"] for measured in together}) == 3


def test_a_bound_of_memory_changes_no_figure(
    language_model, make_language_model, tmp_path, monkeypatch
):
    export_language_model(make_language_model(seed=1), tmp_path / "other", opset=20)
    folders, passages = [tmp_path / "other"], text_passages(PROMPTS, language_model)
    (whole,) = measure_language_models(folders, language_model, passages, 10, threads=1)
    monkeypatch.setattr(parity, "POSITIONS", 1)  # each prompt by itself
    (parts,) = measure_language_models(folders, language_model, passages, 10, threads=1)
    assert parts == pytest.approx(whole, abs=1e-5)


def test_another_models_weights_are_noticed(make_language_model, language_model, tmp_path):
    export_language_model(make_language_model(seed=1), tmp_path / "onnx", opset=20)
    passages = text_passages(PROMPTS, language_model)
    (measured,) = measure_language_models(
        [tmp_path / "onnx"], language_model, passages, 10, threads=1
    )
    for kind in ("prefill", "step", "ragged", "max_abs"):
        assert measured[f"{kind}_difference"] > 0.5
    assert measured["greedy_agreement"] < 0.5
    assert abs(measured["perplexity_increase"]) > 0.01
    assert math.isfinite(measured["perplexity"])


def test_texts_of_one_token_measure_nothing(language_model, language_model_onnx):
    passages = text_passages(["a"], language_model)
    with pytest.raises(UserError, match="at least two tokens"):
        measure_language_models([language_model_onnx], language_model, passages, 4)


def test_texts_are_cut_to_the_context_and_halved(language_model, tokenizer):
    (passage,) = text_passages(["the cat sat on the mat and the dog ran " * 4], language_model)
    assert len(passage.prompt) == len(passage.continuation) == 12
    ids = tokenizer.encode("the cat sat on the mat and the dog ran " * 4)
    assert passage.ids == ids[:24]


def test_entries_are_followed_by_their_answers(make_language_model, tokenizer):
    folder = make_language_model(prompt_style="phi3", context=48)
    entry = {"instruction": "on", "input": "", "output": "the mat"}
    end = tokenizer.end_of_text
    prompt, answer = tokenizer.encode(format_prompt(entry, "phi3")), tokenizer.encode("the mat")
    too_long = {**entry, "output": "the hill " * 48}
    assert instruction_passages([entry, too_long], folder) == [Passage(prompt, [*answer, end])]


def test_perplexity_is_of_what_follows_the_prompt(language_model, language_model_onnx):
    model, passage = load_language_model(language_model), Passage([5, 17, 2], [260, 9])
    (measured,) = measure_language_models(
        [language_model_onnx], language_model, [passage], 4, threads=1
    )
    with torch.inference_mode():
        shares = model(torch.tensor([passage.ids]))[0].log_softmax(dim=-1)
    nats = -(shares[2, 260] + shares[3, 9]) / 2
    assert measured["perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)


def test_agreement_is_the_share_of_tokens_that_the_best_model_takes_too():
    """Both follow PyTorch's tokens: one that differs is one, not the end of the agreement."""
    best = np.array([[0.0, 3, 1], [2, 0, 1], [0, 1, 1 - 1e-6]])
    chosen = np.array([[0.0, 1, 2], [9, 0, 1], [0, 1, 2]])
    assert parity._takes_the_best(best, chosen).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("measured", "fault"),
    [
        ({"lm/max_abs_difference": 2e-3}, "lm/max_abs_difference is 0.002, above"),
        ({"lm/max_abs_difference": math.nan}, "lm/max_abs_difference is nan"),
        ({"lm/greedy_agreement": 0.99}, "lm/greedy_agreement is 0.99: not all"),
    ],
)
def test_an_unfaithful_export_is_refused(measured, fault):
    with pytest.raises(UserError, match=fault):
        require_parity({"c/max_abs_difference": 1e-6, **measured}, 1e-3)


@pytest.mark.parametrize("readout", ["last_token", "padded_last"])
def test_a_faithful_classifier_agrees(readout, make_classifier, tmp_path):
    folder = make_classifier(readout)
    export_classifier(folder, tmp_path / "onnx", opset=20)
    reference = classifier_reference(tmp_path / "onnx", folder, TEXTS)
    measured = measure_classifier(tmp_path / "onnx", reference, TEXTS, [0, 1, 2, 0, 1], threads=1)
    assert 0 < measured["max_abs_difference"] < 1e-4
    assert measured["label_agreement"] == 1.0
    assert measured["accuracy_loss"] == 0.0


def test_another_classifiers_weights_are_noticed(make_classifier, classifier, tmp_path):
    export_classifier(make_classifier(seed=1), tmp_path / "onnx", opset=20)
    labels = [0, 1, 2, 0, 1]
    reference = classifier_reference(tmp_path / "onnx", classifier, TEXTS)
    measured = measure_classifier(tmp_path / "onnx", reference, TEXTS, labels, threads=1)
    assert measured["max_abs_difference"] > 0.5
    assert measured["label_agreement"] < 1
