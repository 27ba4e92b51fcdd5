"""How many bytes a model's tensors take, counted on the model itself.

The model is built without memory (PyTorch's meta device), so that every option of the architecture
counts as the house computes it, and nothing is counted twice in two places.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2, count_parameters
from gptmill.params import LowRank, Optimizer
from gptmill.tasks.classify import choose_trainable
from gptmill.weights.assemble import Unfilled

FLOAT = 4  # bytes; weights, gradients and optimizer state are float32 whatever is computed in
STEP = 4  # bytes of each parameter's step counter, a float32 scalar


@dataclass(frozen=True)
class ModelSize:
    """Counts of one model; all but `parameters` and `trained` are bytes.

    Training takes weights, gradients and optimizer state in full on each process: what ZeRO
    (Rajbhandari et al. 2020, section 3.1) calls the model states, 16 bytes a parameter with AdamW
    in float32. A matrix that Muon trains has one moment instead of two.

    Attributes:
        parameters: numbers in the model, a tied matrix once.
        trained: those of them that learn.
        weights, gradients, optimizer: the model states.
        state_dict: the weights by name, a tied matrix twice, as `TrainState.keep_best` copies them.
        saved: the model's file: zeros stand for biases and positions that it lacks.
        matrices: weights of the linear layers inside blocks.
        embedding: the token embedding, the largest matrix.
        largest_muon_shape: all matrices of the one shape that Muon steps as a batch.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    state_dict: int
    saved: int
    matrices: int
    embedding: int
    largest_muon_shape: int

    @property
    def states(self) -> int:
        """Weights, gradients and optimizer state."""
        return self.weights + self.gradients + self.optimizer


@cache
def language_model_size(config: GPT2Config, optimizer: Optimizer | None = None) -> ModelSize:
    """A language model of which everything learns; without an optimizer, nothing does."""
    with torch.device("meta"), Unfilled():
        model = GPT2(config)
    return _size(model, config, optimizer)


@cache
def classifier_size(
    config: GPT2Config, trainable: str, lora: LowRank, optimizer: Optimizer | None = None
) -> ModelSize:
    """A classifier of two labels, frozen as `choose_trainable` freezes it."""
    with torch.device("meta"), Unfilled():
        model = GPT2Classifier(config, labels=2)
        choose_trainable(model, trainable, lora)
    return _size(model, config, optimizer)


def _size(model: nn.Module, config: GPT2Config, optimizer: Optimizer | None) -> ModelSize:
    named = [(n, p) for n, p in model.named_parameters() if optimizer and p.requires_grad]
    trained = sum(parameter.numel() for _, parameter in named)
    # Which parameters are whose: as `engine.optim.build_optimizer` has it.
    muon = [p for n, p in named if optimizer.muon and ".h." in n and p.dim() >= 2]
    moments = 2 * trained - sum(parameter.numel() for parameter in muon)
    shapes: dict[torch.Size, int] = {}
    for parameter in muon:
        shapes[parameter.shape] = shapes.get(parameter.shape, 0) + FLOAT * parameter.numel()
    parameters = count_parameters(model)
    return ModelSize(
        parameters=parameters,
        trained=trained,
        weights=FLOAT * parameters,
        gradients=FLOAT * trained,
        optimizer=FLOAT * moments + STEP * len(named),
        state_dict=sum(FLOAT * tensor.numel() for tensor in model.state_dict().values()),
        saved=FLOAT * (parameters + _filled_with_zeros(config)),
        matrices=FLOAT * config.layers * 12 * config.width**2,
        embedding=FLOAT * config.vocabulary_size * config.width,
        largest_muon_shape=max(shapes.values(), default=0),
    )


def _filled_with_zeros(config: GPT2Config) -> int:
    """What `weights.folder.complete_parameters` adds: GPT-2 always has biases and positions."""
    width, zeros = config.width, 0
    if config.positions == "none":
        zeros += config.context_length * width
    if not config.bias:
        # Two LayerNorms, then projections to 3, 1, 4 and 1 times the width, in each block.
        zeros += config.layers * 11 * width + width
    return zeros
