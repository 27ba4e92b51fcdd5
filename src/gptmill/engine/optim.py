"""AdamW with decay groups, and the learning rate's schedule."""

import math

import torch
from torch import nn

from gptmill.engine.dynamo import leave_out_dynamo
from gptmill.engine.muon import Muon
from gptmill.engine.workers import ALONE, Workers
from gptmill.params import Optimizer


def build_optimizer(
    model: nn.Module, config: Optimizer, workers: Workers = ALONE
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019): matrices decay, biases and LayerNorms do not.

    Frozen parameters get no state. Fused: one kernel instead of a dozen per parameter. With
    `muon`, matrices inside blocks are Muon's, shared out among the workers.
    """
    leave_out_dynamo()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in trained if p.dim() >= 2]
    in_blocks = [p for name, p in matrices if config.muon and ".h." in name]
    others = [p for name, p in matrices if not (config.muon and ".h." in name)]
    groups = [
        {"params": in_blocks, "weight_decay": config.weight_decay, "muon": config.muon},
        {"params": others, "weight_decay": config.weight_decay, "muon": 0.0},
        {"params": [p for _, p in trained if p.dim() < 2], "weight_decay": 0.0, "muon": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # The schedule sets the rate before each step: here it is 0, and nothing learns without one.
    options = {"lr": 0.0, "betas": (config.beta1, config.beta2), "fused": True}
    if config.muon:
        return Muon(groups, workers, **options)
    return torch.optim.AdamW(groups, **options)


def learning_rate(step: int, steps: int, config: Optimizer) -> float:
    """Linear warmup, then half a cosine to `final_learning_rate` (Loshchilov & Hutter 2017).

    `step` counts from 0; the first step already learns, the last one ends at the final rate.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step + 1 - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_learning_rate + cosine * (config.learning_rate - config.final_learning_rate)
