"""Bytes that the forward pass keeps for the backward pass.

The count follows Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer
Models", section 4.1): walk through a block and add what each operation saves. Theirs is 34·B·T·C +
5·B·H·T² bytes a block in float16 with dropout and without a fused attention; ours differs where
the kernels and the precision do, and tests compare it with what autograd holds.

Shapes: B rows, T tokens, C width, H heads, V vocabulary, R rank.
"""

from dataclasses import dataclass

from gptmill.model.config import GPT2Config

FLOAT, HALF, BYTE, LONG = 4, 2, 1, 8


@dataclass(frozen=True)
class Compute:
    """How it is computed: in bfloat16 (`half`) under autocast or float32, on which device, and by
    how many `workers`, threads that share the rows of a small model (`engine.workers`)."""

    half: bool
    device: str = "cpu"
    workers: int = 1

    @property
    def product(self) -> int:
        """Bytes of a number that a matrix product gives or takes."""
        return HALF if self.half else FLOAT

    @property
    def fused_attention(self) -> bool:
        """CUDA's attention has dropout inside; the CPU's falls back to plain products."""
        return self.device != "cpu"

    @property
    def dropout_mask(self) -> int:
        """Bytes by which dropout knows what it kept: a number on the CPU, a boolean elsewhere."""
        return self.product if self.device == "cpu" else BYTE


@dataclass(frozen=True)
class Kept:
    """What learns: `blocks` of the model's last blocks, with low-rank updates of `rank` or fully.

    `head` is V for a language model (its cross-entropy keeps a probability of every token) and 0
    for a classifier, whose logits are as good as nothing.
    """

    blocks: int
    head: int
    rank: int = 0
    everything: bool = True


def saved_bytes(config: GPT2Config, rows: int, tokens: int, compute: Compute, kept: Kept) -> int:
    """Activations saved by one micro-batch [rows, tokens], weights' bfloat16 copies included."""
    places, width = rows * tokens, config.width
    total = LONG * 2 * places  # ids and targets
    if kept.everything and config.dropout:
        mask = FLOAT if compute.device == "cpu" else BYTE
        total += mask * places * width
    total += kept.blocks * _block(config, rows, tokens, compute, kept)
    if kept.blocks:
        total += FLOAT * places * (width + 2)  # the final LayerNorm's input, mean and deviation
    if kept.head:
        total += compute.product * places * width + FLOAT * places * kept.head
        total += HALF * width * kept.head * compute.half
    return total


def _block(config: GPT2Config, rows: int, tokens: int, compute: Compute, kept: Kept) -> int:
    """One block: both LayerNorms, attention, the feed-forward layers, dropout."""
    places, width, product = rows * tokens, config.width, compute.product
    activation = 4 if config.activation == "relu" else 8  # ReLU's output tells its gradient
    norms = 2 * FLOAT * (width + 2)  # inputs, means, deviations, in float32
    products = product * (3 + activation) * width  # what linear layers and activation were given
    dropout = compute.dropout_mask * 2 * width * bool(config.dropout)
    total = places * (norms + products + dropout) + _attention(config, rows, tokens, compute)
    if compute.half:
        total += HALF * 12 * width**2  # autocast's copies of the weights
    if kept.rank:
        total += 4 * places * kept.rank * product  # between the factors of the four updates
    return total


def _attention(config: GPT2Config, rows: int, tokens: int, compute: Compute) -> int:
    """Query, key, value and what softmax leaves; the context is a linear layer's input."""
    places = rows * tokens
    if config.dropout and not compute.fused_attention:
        # Plain products, in float32 even under autocast: scores, mask and dropped scores.
        return FLOAT * (3 * places * config.width + 3 * rows * config.heads * tokens**2)
    return 3 * compute.product * places * config.width + FLOAT * places * config.heads


def logits_working_bytes(places: int, vocabulary: int, compute: Compute) -> tuple[int, int]:
    """What the loss of `places` tokens holds for a moment, beyond the log-probabilities saved.

    Returns:
        In the forward pass the logits; in the backward pass the gradients of log-probabilities
        and of logits (in both precisions under autocast).
    """
    numbers = places * vocabulary
    copies = HALF * numbers * compute.half
    return FLOAT * numbers + copies, 2 * FLOAT * numbers + copies
