"""ONNX folders against `transformers` on the same weights."""

import numpy as np
import pytest
import torch

from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.generate.sampling import SamplingOptions
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.reading import Reading
from gptmill.runtime.session import Classifier, Generator, OnnxDecoder, open_session
from gptmill.tokenizer import train_byte_pairs
from gptmill.weights.folder import save_model

transformers = pytest.importorskip("transformers")

TEXT = "the cat sat on the mat and the dog ran over the hill " * 9
PROMPTS = ["the cat sat", "the dog ran over the hill"]


def save_random(folder, make, **arguments):
    tokenizer = train_byte_pairs([TEXT], 280)
    model = make(GPT2Config(tokenizer.vocabulary_size, 48, layers=3, heads=4, width=64)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean, 0.2, generator)
    save_model(folder, model, tokenizer, provenance={}, **arguments)
    return tokenizer


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A model folder, and its ONNX folder."""
    root = tmp_path_factory.mktemp("language_model")
    save_random(root / "model", GPT2)
    export_language_model(root / "model", root / "onnx", opset=20)
    return root / "model", root / "onnx"


def test_logits_and_cache_equal_transformers(language_model):
    folder, onnx_folder = language_model
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = np.random.default_rng(0).integers(0, 280, (2, 12))
    mask = np.ones_like(ids)
    mask[1, :5] = 0
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    session = open_session(onnx_folder, 1)
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    empty = np.zeros((2, 4, 0, 16), np.float32)
    feeds |= {f"past_key_values.{i}.{kind}": empty for i in range(3) for kind in ("key", "value")}
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))
    with torch.inference_mode():
        expected = model(**{k: torch.from_numpy(v) for k, v in list(feeds.items())[:3]})
    real = mask.astype(bool)
    np.testing.assert_allclose(outputs["logits"][real], expected.logits.numpy()[real], atol=1e-4)
    for layer in range(3):
        keys = expected.past_key_values.layers[layer].keys.numpy()
        ours = outputs[f"present.{layer}.key"]
        np.testing.assert_allclose(
            ours.transpose(0, 2, 1, 3)[real], keys.transpose(0, 2, 1, 3)[real], atol=1e-4
        )


def test_greedy_tokens_equal_transformers(language_model):
    folder, onnx_folder = language_model
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(onnx_folder, padding_side="left")
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    expected = model.generate(**batch, max_new_tokens=24, do_sample=False)
    expected = expected[:, batch["input_ids"].shape[1] :].tolist()
    ours = Generator(onnx_folder, threads=1).generate(PROMPTS, SamplingOptions(max_new_tokens=24))
    for completion, ids in zip(ours, expected, strict=True):
        assert completion.ids == ids[: len(completion.ids)]
        assert len(completion.ids) == 24 or ids[len(completion.ids)] == tokenizer.eos_token_id


def test_steps_equal_transformers_whole_pass(language_model):
    folder, onnx_folder = language_model
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = np.random.default_rng(1).integers(0, 280, (1, 48))
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    decoder = OnnxDecoder(open_session(onnx_folder, 1), 48)
    logits = [decoder.prefill(ids[:, :1], np.ones((1, 1), np.int64))]
    logits += [decoder.step(ids[:, at]) for at in range(1, 48)]
    np.testing.assert_allclose(np.stack(logits, axis=1), expected, atol=1e-4)


def test_a_classifier_equals_transformers(tmp_path):
    reading = Reading(("ham", "spam"))
    save_random(tmp_path / "model", lambda config: GPT2Classifier(config, 2), reading=reading)
    export_classifier(tmp_path / "model", tmp_path / "onnx", opset=20)
    model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "onnx")
    with torch.inference_mode():
        batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
        expected = model(**batch).logits.softmax(dim=1).tolist()
    for ours, theirs in zip(Classifier(tmp_path / "onnx", 1).classify(PROMPTS), expected):
        assert list(ours.probabilities.values()) == pytest.approx(theirs, abs=1e-5)
