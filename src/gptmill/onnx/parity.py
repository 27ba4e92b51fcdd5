"""How closely an ONNX folder computes what its model folder does in PyTorch.

Shapes: B batch, T tokens, V vocabulary, K labels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from gptmill.errors import UserError
from gptmill.generate.loop import Decoder, left_padded
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.gpt2 import GPT2
from gptmill.onnx.session import (
    Classifier,
    OnnxDecoder,
    open_session,
    read_config,
    softmax,
)
from gptmill.prompt import format_prompt, format_response
from gptmill.tokenizer import load_tokenizer
from gptmill.weights.folder import (
    load_classifier,
    load_language_model,
    load_prompt_style,
    load_reading,
)

COMPARED = 8  # passages whose logits are compared step by step, and as a ragged batch
ALONE = 200  # classified texts that are computed outside a batch too
TIE = 1e-4  # logits this close are equal but for the order in which sums were made


@dataclass(frozen=True)
class Passage:
    """Token ids of a prompt and of what follows it, which is what perplexity is measured on."""

    prompt: list[int]
    continuation: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.continuation


def halves(texts: Sequence[str], model_folder: Path) -> list[Passage]:
    """Plain texts, cut to the model's context, as passages: the second half follows the first."""
    context = read_config(model_folder, "n_positions")["n_positions"]
    cut = [ids[:context] for ids in load_tokenizer(model_folder).encode_batch(texts)]
    return [Passage(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in cut if len(ids) > 1]


def answered(entries: Sequence[Mapping[str, str]], model_folder: Path) -> list[Passage]:
    """Instruction entries in the model's own prompt style as passages, each followed by its
    reference answer and the end-of-text token; those that fit into the context."""
    context = read_config(model_folder, "n_positions")["n_positions"]
    style, tokenizer = load_prompt_style(model_folder), load_tokenizer(model_folder)
    passages = [
        Passage(
            tokenizer.encode(format_prompt(entry, style)),
            [*tokenizer.encode(format_response(entry, style)), tokenizer.end_of_text],
        )
        for entry in entries
    ]
    return [passage for passage in passages if len(passage.ids) <= context]


def measure_language_model(
    onnx_folder: Path,
    model_folder: Path,
    passages: Sequence[Passage],
    greedy_steps: int,
    prefix: str = "",
    threads: int | None = None,
) -> dict[str, float]:
    """Differences of logits, of greedy tokens and of perplexity.

    Args:
        passages: of unequal length; the first `COMPARED` are the ragged batch too.
        greedy_steps: tokens to continue each prompt by, fewer if the context ends before.
        prefix: put before every key.

    Returns:
        `prefill_difference`, `step_difference`, `ragged_difference`: the largest absolute
        difference of logits over whole passages, over cached steps through continuations, and in
        the ragged batch with a step after it; `max_abs_difference`, the largest of these;
        `greedy_agreement`, the share of PyTorch's greedy tokens that ONNX takes too, given those
        before it, so that it is 1 when both generate the same; `perplexity` of the continuations,
        and `perplexity_increase` relative to PyTorch's.

    Raises:
        UserError: there are no passages, or a folder cannot be loaded.
    """
    if not passages:
        raise UserError("parity needs texts of at least two tokens that fit into the context")
    model = load_language_model(model_folder)
    session = open_session(onnx_folder, threads)
    ours, theirs = OnnxDecoder(session, model.config.context_length), TorchDecoder(model)
    compared = passages[:COMPARED]
    prefill, nats = _whole_passages(session, model, passages)
    differences = {
        "prefill_difference": prefill,
        "step_difference": max(_step_difference(ours, theirs, passage) for passage in compared),
        "ragged_difference": _ragged_difference(ours, theirs, [p.ids for p in compared]),
    }
    perplexity, reference = (math.exp(mean) for mean in nats)
    values = {
        **differences,
        "max_abs_difference": max(differences.values()),
        "greedy_agreement": _greedy_agreement(
            ours, theirs, [passage.prompt for passage in passages], greedy_steps
        ),
        "perplexity": perplexity,
        "perplexity_increase": perplexity / reference - 1,
    }
    return {prefix + key: value for key, value in values.items()}


def classifier_reference(onnx_folder: Path, model_folder: Path, texts: Sequence[str]) -> np.ndarray:
    """PyTorch's logits [texts, K], texts read as the ONNX folder reads them. Only texts of one
    length share a batch: nothing is padded but what training padded."""
    model, readout = load_classifier(model_folder), load_reading(model_folder).readout
    classifier = Classifier(onnx_folder)
    ids = classifier.encode(texts)
    logits = np.empty((len(ids), len(classifier.labels)), np.float32)
    by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for _, rows in groupby(by_length, key=lambda row: len(ids[row])):
        rows = list(rows)
        inputs = classifier.padded([ids[row] for row in rows])
        padded, mask = (torch.from_numpy(array) for array in inputs)
        with torch.inference_mode():
            logits[rows] = model(padded, mask if readout == "last_token" else None).numpy()
    return logits


def measure_classifier(
    onnx_folder: Path,
    reference: np.ndarray,
    texts: Sequence[str],
    labels: Sequence[int],
    prefix: str = "",
    threads: int | None = None,
) -> dict[str, float]:
    """Differences of logits and labels.

    Args:
        reference: PyTorch's logits of the texts, from `classifier_reference`.

    Returns:
        `max_abs_difference` of logits, of all texts in padded batches and of the first `ALONE`
        by themselves; `label_agreement`, the share of texts that get the same label; `accuracy`
        on `labels` and `accuracy_loss` against PyTorch's, positive when ONNX is worse.
    """
    classifier = Classifier(onnx_folder, threads)
    ids = classifier.encode(texts)
    batched = classifier.logits(ids)
    alone = np.concatenate([classifier.logits([row]) for row in ids[:ALONE]])
    truth, chosen, expected = np.asarray(labels), batched.argmax(axis=1), reference.argmax(axis=1)
    accuracy = float((chosen == truth).mean())
    values = {
        "max_abs_difference": max(
            _largest(batched - reference), _largest(alone - reference[: len(alone)])
        ),
        "label_agreement": float((chosen == expected).mean()),
        "accuracy": accuracy,
        "accuracy_loss": float((expected == truth).mean()) - accuracy,
    }
    return {prefix + key: value for key, value in values.items()}


def _onnx_logits(session: ort.InferenceSession, ids: list[int]) -> np.ndarray:
    """Logits [T, V] of every position, through the names that every runtime uses."""
    feeds = {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            _, heads, _, width = value.shape
            feeds[value.name] = np.zeros((1, heads, 0, width), np.float32)
    return session.run(["logits"], feeds)[0][0]


def _torch_logits(model: GPT2, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0].numpy()


def _whole_passages(
    session: ort.InferenceSession, model: GPT2, passages: Sequence[Passage]
) -> tuple[float, tuple[float, float]]:
    """The largest difference of logits, and the mean nats of continuations by each side."""
    largest, ours, theirs = 0.0, [], []
    for passage in passages:
        pair = _onnx_logits(session, passage.ids), _torch_logits(model, passage.ids)
        largest = max(largest, _largest(pair[0] - pair[1]))
        for nats, logits in zip((ours, theirs), pair):
            nats.append(_nats(logits[-len(passage.continuation) - 1 : -1], passage.continuation))
    return largest, tuple(float(np.concatenate(nats).mean()) for nats in (ours, theirs))


def _nats(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    """Negative log-likelihood of each id under its row of logits."""
    return -np.log(softmax(logits)[np.arange(len(ids)), ids])


def _step_difference(ours: Decoder, theirs: Decoder, passage: Passage) -> float:
    """Over steps through the continuation."""
    start, mask = left_padded([passage.prompt])
    difference = _largest(ours.prefill(start, mask) - theirs.prefill(start, mask))
    for token in passage.continuation:
        step = np.array([token])
        difference = max(difference, _largest(ours.step(step) - theirs.step(step)))
    return difference


def _ragged_difference(ours: Decoder, theirs: Decoder, ids: list[list[int]]) -> float:
    """Over a batch of unequal texts and a step with the last token of each."""
    padded, mask = left_padded([text[:-1] for text in ids])
    last = np.array([text[-1] for text in ids])
    prefill = _largest(ours.prefill(padded, mask) - theirs.prefill(padded, mask))
    return max(prefill, _largest(ours.step(last) - theirs.step(last)))


def _greedy_agreement(
    ours: Decoder, theirs: Decoder, prompts: list[list[int]], steps: int
) -> float:
    """End-of-text is a token like any other."""
    padded, mask = left_padded(prompts)
    steps = min(steps, ours.context_length - padded.shape[1] + 1)
    expected, chosen = theirs.prefill(padded, mask), ours.prefill(padded, mask)
    agreed = [_takes_the_best(expected, chosen)]
    while len(agreed) < steps:
        tokens = expected.argmax(axis=1)
        expected, chosen = theirs.step(tokens), ours.step(tokens)
        agreed.append(_takes_the_best(expected, chosen))
    return float(np.mean(agreed))


def _takes_the_best(expected: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Whether each row's likeliest token is the expected one, or as likely but for rounding."""
    taken = np.take_along_axis(expected, chosen.argmax(axis=1)[:, None], axis=1)[:, 0]
    return taken >= expected.max(axis=1) - TIE


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())


def require_parity(results: dict[str, float], tolerance: float) -> None:
    """Stop if a model's logits differ from PyTorch's by more than `tolerance`, or a greedy token.

    Raises:
        UserError: which model, and by how much.
    """
    for name, value in results.items():
        if name.endswith("/max_abs_difference") and not value <= tolerance:
            fault = f"{name} is {value:.3g}, above export_onnx.tolerance {tolerance:.3g}"
        elif name.endswith("/greedy_agreement") and value != 1:
            fault = f"{name} is {value:.4g}: not all greedy tokens are PyTorch's"
        else:
            continue
        raise UserError(f"{fault}; the ONNX models are not published")
