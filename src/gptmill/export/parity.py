"""How closely an ONNX folder computes what its model folder does in PyTorch.

Shapes: B batch, T tokens, V vocabulary, K labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from gptmill.batching import left_padded
from gptmill.card import ModelCard
from gptmill.errors import UserError
from gptmill.generate.loop import Decoder
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.likelihood import perplexity
from gptmill.model.gpt2 import GPT2
from gptmill.prompt import format_prompt, format_response
from gptmill.reading import mean_of_pieces, softmax
from gptmill.runtime.session import (
    Classifier,
    OnnxDecoder,
    open_session,
)
from gptmill.tokenizer import load_tokenizer
from gptmill.weights.folder import (
    load_classifier,
    load_language_model,
)

COMPARED = 8  # passages whose logits are compared step by step, and as a ragged batch
ALONE = 200  # classified texts that are computed outside a batch too
POSITIONS = 4096  # whose keys and values each decoder holds at once
TIE = 1e-4  # logits this close are equal but for the order in which sums were made


@dataclass(frozen=True)
class Passage:
    """Token ids of a prompt and of what follows it, which is what perplexity is measured on."""

    prompt: list[int]
    continuation: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.continuation


Answers = tuple[np.ndarray, list[np.ndarray]]
"""PyTorch's logits, and those of each ONNX decoder."""


@dataclass(frozen=True)
class SideBySide:
    """PyTorch's decoder and those of ONNX folders, fed the same."""

    theirs: Decoder
    ours: Sequence[Decoder]

    def prefill(self, ids: np.ndarray, mask: np.ndarray) -> Answers:
        return self.theirs.prefill(ids, mask), [one.prefill(ids, mask) for one in self.ours]

    def step(self, ids: np.ndarray) -> Answers:
        return self.theirs.step(ids), [one.step(ids) for one in self.ours]


def text_passages(texts: Sequence[str], model_folder: Path) -> list[Passage]:
    """Plain texts, cut to the model's context, as passages: the second half follows the first."""
    context = ModelCard.read(model_folder).architecture.context_length
    cut = [ids[:context] for ids in load_tokenizer(model_folder).encode_batch(texts)]
    return [Passage(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in cut if len(ids) > 1]


def instruction_passages(entries: Sequence[Mapping[str, str]], model_folder: Path) -> list[Passage]:
    """Instruction entries in the model's own prompt style as passages, each followed by its
    reference answer and the end-of-text token; those that fit into the context.

    Raises:
        UserError: the model names no prompt style.
    """
    card, tokenizer = ModelCard.read(model_folder), load_tokenizer(model_folder)
    context, style = card.architecture.context_length, card.prompt_style
    if style is None:
        raise UserError(f"{model_folder} names no prompt style: it was not trained on instructions")
    passages = [
        Passage(
            tokenizer.encode(format_prompt(entry, style)),
            [*tokenizer.encode(format_response(entry, style)), tokenizer.end_of_text],
        )
        for entry in entries
    ]
    return [passage for passage in passages if len(passage.ids) <= context]


def measure_language_models(
    onnx_folders: Sequence[Path],
    model_folder: Path,
    passages: Sequence[Passage],
    greedy_steps: int,
    threads: int | None = None,
) -> list[dict[str, float]]:
    """Differences of logits, of greedy tokens and of perplexity, of ONNX folders of one model.

    All are fed side by side, so that PyTorch computes each logit once and none is kept.

    Args:
        passages: of unequal length; the first `COMPARED` are the ragged batch too.
        greedy_steps: tokens to continue each prompt by, fewer if the context ends before.

    Returns:
        Of each folder:
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
    sessions = [open_session(folder, threads) for folder in onnx_folders]
    decoders = [OnnxDecoder(session, model.config.context_length) for session in sessions]
    both = SideBySide(TorchDecoder(model), decoders)
    compared = passages[:COMPARED]
    prefill, perplexities, reference = _whole_passages(sessions, model, passages)
    steps = np.max([_step_differences(both, passage) for passage in compared], axis=0)
    ragged = _ragged_differences(both, [passage.ids for passage in compared])
    agreements = _greedy_agreements(both, [passage.prompt for passage in passages], greedy_steps)
    columns = {
        "prefill_difference": prefill,
        "step_difference": steps,
        "ragged_difference": ragged,
        "max_abs_difference": np.max([prefill, steps, ragged], axis=0),
        "greedy_agreement": agreements,
        "perplexity": perplexities,
        "perplexity_increase": perplexities / reference - 1,
    }
    return [
        {key: float(values[place]) for key, values in columns.items()}
        for place in range(len(onnx_folders))
    ]


def measure_classifiers(
    onnx_folders: Sequence[Path],
    model_folder: Path,
    texts: Sequence[str],
    labels: Sequence[int],
    threads: int | None = None,
) -> list[dict[str, float]]:
    """`measure_classifier` of ONNX folders of one model, on the same answers of PyTorch."""
    reference = classifier_reference(onnx_folders[0], model_folder, texts)
    return [
        measure_classifier(folder, reference, texts, labels, threads) for folder in onnx_folders
    ]


def classifier_reference(onnx_folder: Path, model_folder: Path, texts: Sequence[str]) -> np.ndarray:
    """PyTorch's logits [texts, K], texts read as the ONNX folder reads them. Only texts of one
    length share a batch: nothing is padded but what training padded."""
    model = load_classifier(model_folder)
    _, reading = ModelCard.read(model_folder).classifier(model_folder)
    classifier = Classifier(onnx_folder)
    parts = [classifier.reading.pieces(text) for text in classifier.encode(texts)]
    pieces = [piece for text in parts for piece in text]
    logits = np.empty((len(pieces), len(classifier.labels)), np.float32)
    lengths = np.array([len(piece) for piece in pieces])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        inputs = classifier.padded([pieces[row] for row in rows])
        padded, mask = (torch.from_numpy(array) for array in inputs)
        with torch.inference_mode():
            logits[rows] = model(padded, mask if reading.readout == "last_token" else None).numpy()
    return mean_of_pieces(logits, [len(text) for text in parts])


def measure_classifier(
    onnx_folder: Path,
    reference: np.ndarray,
    texts: Sequence[str],
    labels: Sequence[int],
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
    reading, truth = classifier.reading, np.asarray(labels)
    chosen, expected = (
        reading.choose(reading.probabilities(logits)) for logits in (batched, reference)
    )
    accuracy = float((chosen == truth).mean())
    return {
        "max_abs_difference": max(
            _largest(batched - reference), _largest(alone - reference[: len(alone)])
        ),
        "label_agreement": float((chosen == expected).mean()),
        "accuracy": accuracy,
        "accuracy_loss": float((expected == truth).mean()) - accuracy,
    }


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
    sessions: Sequence[ort.InferenceSession], model: GPT2, passages: Sequence[Passage]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Of each session the largest difference of logits and the perplexity of the continuations,
    and PyTorch's perplexity."""
    differences, nats = [], []
    for passage in passages:
        rows = slice(-len(passage.continuation) - 1, -1)
        theirs = _torch_logits(model, passage.ids)
        surprises = [_nats(theirs[rows], passage.continuation)]
        for session in sessions:
            logits = _onnx_logits(session, passage.ids)
            differences.append(_largest(logits - theirs))
            surprises.append(_nats(logits[rows], passage.continuation))
        nats.append(surprises)
    reference, *perplexities = (perplexity(row.mean()) for row in np.concatenate(nats, axis=1))
    largest = np.reshape(differences, (len(passages), -1)).max(axis=0)
    return largest, np.array(perplexities), reference


def _nats(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    """Negative log-likelihood of each id under its row of logits."""
    return -np.log(softmax(logits)[np.arange(len(ids)), ids])


def _step_differences(both: SideBySide, passage: Passage) -> np.ndarray:
    """Of each ONNX decoder, over steps through the continuation."""
    found = [_differences(both.prefill(*left_padded([passage.prompt])))]
    found += [_differences(both.step(np.array([token]))) for token in passage.continuation]
    return np.max(found, axis=0)


def _ragged_differences(both: SideBySide, ids: list[list[int]]) -> np.ndarray:
    """Of each ONNX decoder, over a batch of unequal texts and a step with each one's last token."""
    ids = ids[: max(2, POSITIONS // max(map(len, ids)))]
    prefill = _differences(both.prefill(*left_padded([text[:-1] for text in ids])))
    step = _differences(both.step(np.array([text[-1] for text in ids])))
    return np.maximum(prefill, step)


def _greedy_agreements(both: SideBySide, prompts: list[list[int]], steps: int) -> np.ndarray:
    """Of each ONNX decoder; end-of-text is a token like any other."""
    longest = max(map(len, prompts))
    steps = min(steps, both.theirs.context_length - longest + 1)
    rows = max(1, POSITIONS // (longest + steps))
    agreed = [
        _greedily_agreed(both, prompts[start : start + rows], steps)
        for start in range(0, len(prompts), rows)
    ]
    return np.concatenate(agreed, axis=2).mean(axis=(0, 2))


def _greedily_agreed(both: SideBySide, prompts: list[list[int]], steps: int) -> np.ndarray:
    """Whether each ONNX decoder takes PyTorch's token, [steps, decoders, prompts]."""
    expected, found = both.prefill(*left_padded(prompts))
    agreed = [[_takes_the_best(expected, logits) for logits in found]]
    while len(agreed) < steps:
        expected, found = both.step(expected.argmax(axis=1))
        agreed.append([_takes_the_best(expected, logits) for logits in found])
    return np.array(agreed)


def _takes_the_best(expected: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Whether each row's likeliest token is the expected one, or as likely but for rounding."""
    taken = np.take_along_axis(expected, chosen.argmax(axis=1)[:, None], axis=1)[:, 0]
    return taken >= expected.max(axis=1) - TIE


def _differences(answers: Answers) -> np.ndarray:
    """The largest of each ONNX decoder's logits."""
    expected, found = answers
    return np.array([_largest(logits - expected) for logits in found])


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
