"""The most memory that each kind of work holds at once, in bytes beyond what Python itself takes.

Shapes: B rows, T tokens, C width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gptmill.engine.runtime import SMALL_MODEL
from gptmill.generate.torch_decoder import ROOM
from gptmill.model.config import GPT2Config
from gptmill.plan.activations import (
    FLOAT,
    LONG,
    Compute,
    Kept,
    logits_working_bytes,
    saved_bytes,
)
from gptmill.plan.sizes import ModelSize


@dataclass(frozen=True)
class Memory:
    """A stage's peak in named parts, bytes: what is held at the moment that holds most.

    `base` is Python with the libraries imported; it is not on the accelerator, if there is one.
    """

    base: int = 0
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    best: int = 0
    data: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.base + self.device

    @property
    def device(self) -> int:
        """What lies where it is computed: everything but Python and the data."""
        named = self.weights + self.gradients + self.optimizer + self.activations
        return named + self.logits + self.best + self.data + sum(self.parts.values())


def sharing(size: ModelSize, config: GPT2Config, compute: Compute, training: bool) -> int:
    """Threads that compute at the same time, each with rows of its own: as `Runtime.workers`."""
    small = size.parameters < SMALL_MODEL and not (training and config.dropout)
    return compute.workers if small else 1


def heaviest(moments: Mapping[str, Memory]) -> Memory:
    """The moment that holds most."""
    return max(moments.values(), key=lambda memory: memory.total)


@dataclass(frozen=True)
class Shape:
    """A micro-batch at its largest, and how many of them a step adds up."""

    rows: int
    tokens: int
    accumulation: int = 1

    @property
    def places(self) -> int:
        return self.rows * self.tokens


def training_moments(
    size: ModelSize, config: GPT2Config, shape: Shape, compute: Compute, kept: Kept
) -> dict[str, Memory]:
    """The moments of a training step, any of which may be the largest.

    Gradients of earlier micro-batches stay until the optimizer has stepped; the first
    micro-batch's begin at nothing. Workers each have gradients of their own before they are
    added. The best weights so far are a copy beside the model.
    """
    states = {"weights": size.weights, "optimizer": size.optimizer, "best": size.state_dict}
    saved = saved_bytes(config, shape.rows, shape.tokens, compute, kept)
    probabilities = FLOAT * shape.places * kept.head
    forward, backward = logits_working_bytes(shape.places, kept.head, compute)
    earlier = size.gradients if shape.accumulation > 1 else 0
    # Head and embedding have gradients of V by C, made anew before they are added.
    head = FLOAT * kept.head * config.width
    working = FLOAT * shape.places * config.width * 8  # of the block that goes back
    apart = sharing(size, config, compute, training=True)
    return {
        "loss": Memory(
            **states,
            gradients=earlier,
            activations=saved - probabilities,
            logits=probabilities + max(forward, backward),
        ),
        "head": Memory(
            **states,
            gradients=earlier + apart * head,
            activations=saved - probabilities,
            logits=probabilities,
        ),
        "end of the backward pass": Memory(
            **states, gradients=apart * (size.gradients + head) + earlier, activations=working
        ),
        # Muon: gradients of one shape blended, stacked, made orthogonal, scaled.
        "optimizer": Memory(
            **states, gradients=size.gradients, activations=4 * size.largest_muon_shape
        ),
        "copy of the best weights": Memory(
            weights=size.weights, optimizer=size.optimizer, best=2 * size.state_dict
        ),
    }


def evaluation(config: GPT2Config, places: int, copies: int, compute: Compute) -> tuple[int, int]:
    """Activations and logits of a forward pass without gradients.

    A block's widest moment holds its input, a LayerNorm's output and the feed-forward layers
    before and after the activation. Logits are held `copies` times in float32: as such, as
    log-probabilities, and laid out anew in between where windows slide; 0 for a classifier.
    """
    wide = places * config.width * (2 * FLOAT + 8 * compute.product)
    half = compute.product * compute.half
    return wide, places * config.vocabulary_size * (FLOAT * copies + half * (copies > 0))


def generation(config: GPT2Config, rows: int, prompt: int, new: int) -> tuple[int, int]:
    """The cache of keys and values with a prompt's working set, and logits.

    The cache has room for `ROOM` tokens beyond the prompt, of which only what is written to takes
    memory; a longer text moves to a cache of twice the room, and the old one is there meanwhile.
    """
    held = min(prompt + ROOM, config.context_length)
    needed = min(prompt + new, config.context_length)
    one = 2 * config.layers * rows * config.width * FLOAT
    cache = one * (needed if needed <= held else held + needed)
    prefill = FLOAT * rows * prompt * config.width * 10 + rows * prompt * prompt * (1 + FLOAT)
    return cache + prefill, 2 * FLOAT * rows * config.vocabulary_size


def export(size: ModelSize) -> int:
    """Writing `model.onnx`: the tensors, then copies of them in the graph, in the model around it
    and in the bytes that are written, beside PyTorch's own and one matrix laid out anew.

    Measured with 124M: 5.4 times the weights; of quantized variants 2.8, so that the plain one
    decides.
    """
    return 4 * size.weights + size.embedding


def token_bytes(tokens: int) -> int:
    """Token lists in Python: a pointer and an integer object each."""
    return tokens * (LONG + 28)
