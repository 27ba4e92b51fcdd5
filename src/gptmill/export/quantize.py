"""Smaller weights: how they enter the graph, and whether the result is good enough to publish.

- `weights8` and `weights4`: blocks of a column share a scale (Frantar et al. 2022 call it group
  size); ONNX Runtime's `MatMulNBits` multiplies them with activations that it rounds to 8 bits
  block by block. The embedding, which is also the head, has 8 bits in both.
- `dynamic8`: one scale for each column, and one for all activations of a product, found as it
  runs (`DynamicQuantizeLinear`): standard operators alone, so every runtime opens it. The weights
  are uint8: without VNNI, ONNX Runtime adds pairs of uint8 × int8 products in 16 bits, which
  saturate (its page "Quantize ONNX models" says when); uint8 × uint8 is exact on every processor.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto

from gptmill.errors import UserError
from gptmill.export.graph import Graph, Layers, bias_inputs
from gptmill.params import Budget

BLOCK = 32  # weights that share a scale
MIDDLE = 128  # the zero of 8 bits
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy level at which it multiplies in 8 bits
MICROSOFT = "com.microsoft"


def outside_budget(budget: Budget, measured: dict[str, float], prefix: str = "") -> list[str]:
    """What of `parity`'s measurements is outside the budget, in words; empty if nothing is."""
    limits = {
        "perplexity_increase": (budget.perplexity_increase, 1),
        "accuracy_loss": (budget.accuracy_loss, 1),
        "greedy_agreement": (budget.greedy_agreement, -1),
    }
    return [
        f"{key} is {measured[prefix + key]:.4g}, the budget {limit:g}"
        for key, (limit, sign) in limits.items()
        # `not … <=`, because a NaN is outside too.
        if prefix + key in measured and not sign * measured[prefix + key] <= sign * limit
    ]


def keep_within_budget(
    folder: Path, budget: Budget, measured: dict[str, float], prefix: str = ""
) -> bool:
    """Keep an ONNX folder only if what was measured of it is inside the budget.

    Returns:
        Whether it is. Outside the budget nothing is left at `folder`, and what is outside is said
        on standard error.
    """
    outside = outside_budget(budget, measured, prefix)
    if outside:
        shutil.rmtree(folder)
        print(f"{folder.name} is not published: {'; '.join(outside)}", file=sys.stderr)
    return not outside


def quantized(method: str) -> Layers:
    """The layers of a method, for `export_language_model` and `export_classifier`.

    Raises:
        UserError: the method is unknown.
    """
    if method not in METHODS:
        raise UserError(f"unknown quantization '{method}'; known: {', '.join(METHODS)}")
    return METHODS[method]


def quantize_blocks(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Round [N, K] to integers around 2^(bits-1), with a scale for each block of a row.

    Returns:
        uint8 [N, K / block, block · bits / 8], at 4 bits the even weight in a byte's low half,
        the last block filled with zeros; scales float32 [N, K / block].
    """
    rows, columns = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -columns % BLOCK))).reshape(rows, -1, BLOCK)
    scales = np.abs(padded).max(axis=2) / (2 ** (bits - 1) - 1)
    divisor = np.where(scales == 0, 1, scales)[:, :, None]
    integers = (np.rint(padded / divisor) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        integers = integers[:, :, ::2] | integers[:, :, 1::2] << 4
    return integers, scales.astype(np.float32)


def quantize_columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round [K, N] to uint8 around 128 with a scale for each column, float32 [N]."""
    scales = np.abs(matrix).max(axis=0) / 127
    integers = np.rint(matrix / np.where(scales == 0, 1, scales)) + MIDDLE
    return integers.astype(np.uint8), scales.astype(np.float32)


def _block_tensors(graph: Graph, name: str, bits: int, transpose: bool) -> list[str]:
    """Names of the rounded matrix and its scales, made once."""
    names = [f"{name}.weight.{kind}" for kind in ("integers", "scales")]
    if names[0] not in graph.tensors:
        matrix = graph.weights[f"{name}.weight"]
        values = quantize_blocks(matrix.T if transpose else matrix, bits)
        for tensor, value in zip(names, values):
            graph.tensor(tensor, value)
    return names


def _block_product(graph: Graph, x: str, name: str, bits: int, transpose: bool) -> str:
    integers, scales = _block_tensors(graph, name, bits, transpose)
    shape = graph.weights[f"{name}.weight"].shape
    columns, rows = shape if transpose else shape[::-1]
    bias = bias_inputs(graph, name)
    return graph.node(
        "MatMulNBits",
        [x, integers, scales, *(["", "", *bias] if bias else [])],
        domain=MICROSOFT,
        K=columns,
        N=rows,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=INT8_ACTIVATIONS,
    )


def _block_linear(bits: int) -> Callable[[Graph, str, str], str]:
    def linear(graph: Graph, x: str, name: str) -> str:
        return _block_product(graph, x, name, bits, transpose=True)

    return linear


def _block_head(graph: Graph, x: str, name: str) -> str:
    return _block_product(graph, x, name, 8, transpose=False)


def _block_embedding(graph: Graph, ids: str, name: str) -> str:
    """The head's own rounded rows, made floats again: [B, T, C]."""
    integers, scales = _block_tensors(graph, name, 8, transpose=False)
    rows = graph.node("Cast", [graph.node("Gather", [integers, ids])], to=TensorProto.FLOAT)
    middle = graph.tensor("middle", np.array(MIDDLE, np.float32))
    scale = graph.node("Unsqueeze", [graph.node("Gather", [scales, ids]), graph.integers(-1)])
    rows = graph.node("Mul", [graph.node("Sub", [rows, middle]), scale])
    return _without_padding(graph, rows, graph.weights[f"{name}.weight"].shape[1])


def _without_padding(graph: Graph, rows: str, width: int) -> str:
    """[B, T, blocks, block] as [B, T, C], what filled the last block left out."""
    joined = graph.node("Reshape", [rows, graph.integers(0, 0, -1)])
    if width % BLOCK == 0:
        return joined
    return graph.node(
        "Slice", [joined, graph.integers(0), graph.integers(width), graph.integers(2)]
    )


def _column_tensors(graph: Graph, name: str, transpose: bool) -> list[str]:
    names = [f"{name}.weight.{kind}" for kind in ("integers", "scales")]
    if names[0] not in graph.tensors:
        matrix = graph.weights[f"{name}.weight"]
        for tensor, value in zip(names, quantize_columns(matrix.T if transpose else matrix)):
            graph.tensor(tensor, value)
    return names


def _column_product(graph: Graph, x: str, name: str, transpose: bool) -> str:
    integers, scales = _column_tensors(graph, name, transpose)
    place = f"DynamicQuantizeLinear_{len(graph.nodes)}"
    rounded, scale, zero = (f"{place}.{part}" for part in ("rounded", "scale", "zero"))
    graph.node("DynamicQuantizeLinear", [x], rounded, scale, zero)
    middle = graph.tensor("zero_point", np.array(MIDDLE, np.uint8))
    product = graph.node("MatMulInteger", [rounded, integers, zero, middle])
    product = graph.node("Cast", [product], to=TensorProto.FLOAT)
    product = graph.node("Mul", [product, graph.node("Mul", [scale, scales])])
    bias = bias_inputs(graph, name)
    return graph.node("Add", [product, *bias]) if bias else product


def _column_linear(graph: Graph, x: str, name: str) -> str:
    return _column_product(graph, x, name, transpose=False)


def _column_head(graph: Graph, x: str, name: str) -> str:
    return _column_product(graph, x, name, transpose=True)


def _column_embedding(graph: Graph, ids: str, name: str) -> str:
    """Columns of the head's own rounded matrix [C, V], made floats again: [B, T, C]."""
    integers, scales = _column_tensors(graph, name, transpose=True)
    rows = graph.node("Transpose", [graph.node("Gather", [integers, ids], axis=1)], perm=[1, 2, 0])
    rows = graph.node("Cast", [rows], to=TensorProto.FLOAT)
    middle = graph.tensor("middle", np.array(MIDDLE, np.float32))
    scale = graph.node("Unsqueeze", [graph.node("Gather", [scales, ids]), graph.integers(-1)])
    return graph.node("Mul", [graph.node("Sub", [rows, middle]), scale])


METHODS = {
    "weights8": Layers(_block_linear(8), _block_embedding, _block_head),
    "weights4": Layers(_block_linear(4), _block_embedding, _block_head),
    "dynamic8": Layers(_column_linear, _column_embedding, _column_head),
}
