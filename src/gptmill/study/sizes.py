"""The four GPT-2 sizes: parameters with and without a tied head, and memory by use."""

from typing import Any

import torch

from gptmill.model.config import GPT2_SIZES, GPT2Config, gpt2_config
from gptmill.model.gpt2 import GPT2, count_parameters
from gptmill.study.draw import panels
from gptmill.study.finding import Finding
from gptmill.weights.assemble import Unfilled

GIB = 2**30
# Bytes a parameter: weights, their gradients, and AdamW's two moments, all float32.
FLOAT32, BFLOAT16, TRAINING = 4, 2, 16


def memory(config: GPT2Config) -> dict[str, float]:
    """Parameters, and GiB of weights, of training without activations, and of a full cache."""
    with torch.device("meta"), Unfilled():  # counted without being made
        parameters = count_parameters(GPT2(config))
    untied = parameters + config.vocabulary_size * config.width
    cache = 2 * config.layers * config.context_length * config.width * FLOAT32
    return {
        "parameters": parameters,
        "parameters_untied": untied,
        "float32_gib": parameters * FLOAT32 / GIB,
        "bfloat16_gib": parameters * BFLOAT16 / GIB,
        "training_gib": parameters * TRAINING / GIB,
        "cache_gib": cache / GIB,
    }


def model_sizes(own: GPT2Config) -> Finding:
    """OpenAI's four and this pipeline's own."""
    rows: list[dict[str, Any]] = [
        {"size": size, **memory(gpt2_config(size))} for size in GPT2_SIZES
    ]
    mine = memory(own)
    figure, (axes,) = panels(height=3.0)
    uses = {
        "bfloat16_gib": "weights, bfloat16",
        "float32_gib": "weights, float32",
        "training_gib": "training with AdamW, before activations",
        "cache_gib": "keys and values of 1,024 tokens",
    }
    for place, (column, name) in enumerate(uses.items()):
        values = [row[column] for row in rows]
        places = [i + 0.2 * (place - 1.5) for i in range(len(rows))]
        axes.bar(places, values, width=0.19, label=name)
        for x, value in zip(places, values):
            axes.annotate(f"{value:.1f}", (x, value), (0, 2), ha="center", fontsize=6.5,
                          textcoords="offset points")  # fmt: skip
    axes.set_xticks(range(len(rows)), [_described(row["size"]) for row in rows])
    axes.set_ylabel("GiB")
    axes.legend()
    first, last = rows[0], rows[-1]
    return Finding(
        "model_sizes",
        4,
        "The four sizes of GPT-2 in memory",
        f"From {first['parameters']:,} to {last['parameters']:,} parameters; tying the head to the "
        f"token embedding saves {first['parameters_untied'] - first['parameters']:,} of the "
        f"smallest's {first['parameters_untied']:,}. Training the largest takes "
        f"{last['training_gib']:.0f} GiB before a single activation. The model of this pipeline "
        f"has {mine['parameters']:,}",
        {f"{row['size']}_{name}": value for row in rows for name, value in row.items()
         if name in ("parameters", "float32_gib", "training_gib")}
        | {"own_parameters": mine["parameters"]},
        [*rows, {"size": "own", **mine}],
        figure,
    )  # fmt: skip


def _described(size: str) -> str:
    layers, heads, width = GPT2_SIZES[size]
    return f"{size}\n{layers} layers, {heads} heads, {width}"
