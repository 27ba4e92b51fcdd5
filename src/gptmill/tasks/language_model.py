"""Next-token prediction: its loss, and perplexities that can be compared.

Shapes: B batch, T time, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from gptmill.batching import batches_by_length
from gptmill.data.documents import IGNORED, DocumentExamples, collate_documents
from gptmill.data.mixture import parts
from gptmill.data.tokens import TokenSplit, WindowSampler
from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import Batches
from gptmill.likelihood import perplexity
from gptmill.tasks.mixture import MixtureBatches
from gptmill.tokenizer import Tokenizer

EVALUATION_TOKENS = 8192  # tokens in one forward pass without gradients


class TokenBatch(NamedTuple):
    """Ids and the ids that follow them, both [B, T]; `IGNORED` targets do not count."""

    inputs: np.ndarray
    targets: np.ndarray


def training_batches(
    split: TokenSplit, rows: str, batch_size: int, context_length: int, seed: int
) -> Batches:
    """Batches of `windows` of the token stream, or of whole `documents`, one to a row.

    Of several corpora each row is drawn by their weights.
    """
    if corpora := parts(split):
        rows_of = [training_batches(part, rows, 1, context_length, seed) for part in corpora]
        weights = [part.weight for part in corpora]
        return MixtureBatches(rows_of, weights, batch_size, seed, split.end_of_text)
    if rows == "windows":
        return WindowSampler(split, batch_size, context_length, seed)
    examples = DocumentExamples(split, context_length)
    collate = partial(collate_documents, end_of_text=split.end_of_text)
    return ShuffledBatches(examples, collate, batch_size, seed, examples.lengths)


class LanguageModelTask:
    """Cross-entropy of the next token; serves pretraining and instruction fine-tuning.

    Args:
        unit: what a target is called, where only some of the tokens are targets.
    """

    def __init__(self, unit: str = "tokens") -> None:
        self.unit = unit

    def targets(self, batch: TokenBatch) -> float:
        _, targets = batch
        return float((targets != IGNORED).sum())

    def loss(self, model: nn.Module, batch: TokenBatch, runtime: Runtime) -> Tensor:
        inputs, targets = batch
        loss = runtime.fused(summed_cross_entropy)
        return loss(model(runtime.tensor(inputs)), runtime.tensor(targets))


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−Σ ln p(target) over targets that count, in float32. logits [B, T, V], targets [B, T]."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def batch_loss(model: nn.Module, batches: list[TokenBatch], runtime: Runtime) -> float:
    """Mean nats per counted target over ready-made batches, in evaluation mode."""
    targets = sum(LanguageModelTask().targets(batch) for batch in batches)
    return _batch_nats(model, batches, runtime) / targets


def _batch_nats(model: nn.Module, batches: list[TokenBatch], runtime: Runtime) -> float:
    task = LanguageModelTask()
    return sum(runtime.infer(model, lambda batch: task.loss(model, batch, runtime).item(), batches))


@dataclass(frozen=True)
class Likelihood:
    """How well a model predicts a text: total nats over `tokens` scored tokens.

    `bytes` and `words` are the text's own, so that models with different tokenizers compare;
    `unknown` counts tokens that stand for characters or words the tokenizer does not know.
    """

    nats: float
    tokens: int
    bytes: int
    words: int
    unknown: int = 0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Flat metrics: nats per token, perplexity = exp of that, bits per token, byte, word.

        With unknown tokens there are none per byte and word: what is not spelled out costs nothing.
        """
        bits = self.nats / math.log(2)
        found = {
            f"{prefix}loss": self.loss,
            f"{prefix}perplexity": perplexity(self.loss),
            f"{prefix}bits_per_token": bits / self.tokens,
        }
        if self.unknown:
            return found | {f"{prefix}unknown/share": self.unknown / self.tokens}
        return found | {
            f"{prefix}bits_per_byte": bits / self.bytes,
            f"{prefix}bits_per_word": bits / max(1, self.words),
        }


def split_likelihood(
    model: nn.Module,
    split: TokenSplit,
    window: int,
    stride: int,
    runtime: Runtime,
    limit: int | None = None,
) -> Likelihood:
    """How well the model predicts a split's documents, or its first `limit` tokens."""
    count = min(len(split), limit or len(split))
    ends = np.append(split.document_starts[1:], len(split))
    spans = [(s, min(e, count)) for s, e in zip(split.document_starts, ends) if s < count]
    documents = [split.at(np.arange(start, end)) for start, end in spans]
    nats = document_nats(model, documents, split.end_of_text, window, stride, runtime)
    share = count / len(split)
    sizes = (round(whole * share) for whole in (split.bytes, split.words, split.unknown))
    return Likelihood(nats, count, *sizes)


def text_likelihood(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    window: int,
    stride: int,
    runtime: Runtime,
) -> Likelihood:
    """How well the model predicts texts, each with its end, whatever their tokenizer was before."""
    end = tokenizer.end_of_text
    documents = [np.array([*ids, end]) for ids in tokenizer.encode_batch(texts)]
    return Likelihood(
        nats=document_nats(model, documents, end, window, stride, runtime),
        tokens=sum(map(len, documents)),
        bytes=sum(len(text.encode()) for text in texts),
        words=sum(len(text.split()) for text in texts),
    )


def document_nats(
    model: nn.Module,
    documents: Sequence[np.ndarray],
    end_of_text: int,
    window: int,
    stride: int,
    runtime: Runtime,
) -> float:
    """−Σ ln p over documents, each seen from its own beginning, after `<|endoftext|>`.

    Documents that fit into a window are batched by length; longer ones slide (`token_nats`).
    """
    long = [ids for ids in documents if len(ids) > window]
    short = [ids for ids in documents if len(ids) <= window]
    order = batches_by_length([len(ids) for ids in short], max(1, EVALUATION_TOKENS // window))
    batches = [
        TokenBatch(*collate_documents([short[row] for row in rows], end_of_text)) for rows in order
    ]
    nats = sum(
        token_nats(model, np.append(end_of_text, ids), window, stride, runtime).sum()
        for ids in long
    )
    return float(nats) + _batch_nats(model, batches, runtime)


def token_nats(
    model: nn.Module, ids: np.ndarray, window: int, stride: int, runtime: Runtime
) -> np.ndarray:
    """−ln p of ids[1:], each given up to `window` tokens before it; float64 [len(ids) - 1].

    The sliding window of the transformers documentation ("Perplexity of fixed-length models"):
    windows start every `stride` tokens and each scores only the targets that no window before it
    did. So every token but the first few has at least `window - stride` tokens of context.
    Pass ids that begin with `<|endoftext|>` to have the first real token scored too.

    Raises:
        ValueError: stride is not within 1..window, or there is nothing to score.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride {stride} is not within 1..{window}")
    if len(ids) < 2:
        raise ValueError("a likelihood needs at least two tokens")
    scored = np.empty(len(ids) - 1, dtype=np.float64)
    # A window covers inputs ids[start : start + window] and their targets one further.
    starts = list(range(0, max(1, len(ids) - 1 - (window - stride)), stride))
    whole = [start for start in starts if start + window < len(ids)]
    rows = max(1, EVALUATION_TOKENS // window)
    groups = [whole[i : i + rows] for i in range(0, len(whole), rows)]
    groups += [[start] for start in starts[len(whole) :]]

    def score(group: list[int]) -> np.ndarray:
        length = min(window, len(ids) - 1 - group[0])
        return _window_nats(model, ids, group, length, runtime)

    for group, nats in zip(groups, runtime.infer(model, score, groups)):
        for start, row in zip(group, nats):
            # The first window scores all its targets, the others those not scored before.
            known = 0 if start == 0 else window - stride
            scored[start + known : start + len(row)] = row[known:]
    return scored


def _window_nats(
    model: nn.Module, ids: np.ndarray, starts: list[int], length: int, runtime: Runtime
) -> np.ndarray:
    """−ln p of the targets of windows of one length, [starts, length]."""
    rows = np.stack([ids[start : start + length + 1] for start in starts]).astype(np.int64)
    tensor = runtime.tensor(rows)
    logits = model(tensor[:, :-1])
    nats = F.cross_entropy(logits.transpose(1, 2).float(), tensor[:, 1:], reduction="none")
    return nats.cpu().double().numpy()  # Apple's GPU has no float64
