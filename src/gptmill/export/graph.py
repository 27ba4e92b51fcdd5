"""GPT-2 as an ONNX graph, built node by node from the weights: no tracing, no torch.

The same weights give the same bytes, and only standard operators are used, so that every ONNX
runtime opens the result; ONNX Runtime fuses what it can at load. Activations are kept flat,
[B·T, C], so that each linear layer is one `Gemm` with its bias, as OpenAI's own code has it.
Shapes: B batch, T new tokens, P past tokens, S = P + T, H heads, D head width, C = H·D, V
vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from gptmill.model.config import GPT2Config

DATA_ALIGNMENT = 65536  # bytes; external tensors start where any system can map them
MINIMUM_OPSET = 20  # the first with a Gelu of its own
EPSILON = 1e-5  # of every LayerNorm
PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"
TOTAL = "past_sequence_length + sequence_length"  # optimum computes this axis from its name
MASKED_IDS = ("input_ids", "attention_mask")
INLINE_BYTES = 1024  # smaller tensors stay in the graph, where optimizers look at their values
IR_VERSION = 10  # the newest that ONNX Runtime 1.18 and its browser build read
DTYPES = {
    np.dtype("float32"): TensorProto.FLOAT,
    np.dtype("int64"): TensorProto.INT64,
    np.dtype("uint8"): TensorProto.UINT8,
}


class Graph:
    """Nodes and tensors in the order they are added.

    Args:
        weights: parameters by Hugging Face's name, in its orientation ([in, out] for Conv1D).
        opset: version of ONNX's standard operators.
        data: an open file for tensors beside the graph, or None to hold them in it.
        data_name: that file's name as the graph refers to it, relative to its own folder.
    """

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        opset: int,
        data: BinaryIO | None = None,
        data_name: str = "",
    ) -> None:
        self.weights = weights
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self._data = data
        self._data_name = data_name

    def node(
        self,
        operator: str,
        inputs: list[str],
        *outputs: str,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; the name of its first output, made up unless given."""
        name = f"{operator}_{len(self.nodes)}"
        names = list(outputs) or [name]
        self.nodes.append(
            helper.make_node(operator, inputs, names, name=name, domain=domain, **attributes)
        )
        return names[0]

    def tensor(self, name: str, values: np.ndarray) -> str:
        """Add a constant once, however often it is named."""
        if name in self.tensors:
            return name
        proto = TensorProto(name=name, data_type=DTYPES[values.dtype], dims=values.shape)
        if self._data is not None and values.nbytes >= INLINE_BYTES:
            self._write_beside(self._data, proto, values)
        else:
            proto.raw_data = np.ascontiguousarray(values).tobytes()
        self.tensors[name] = proto
        return name

    def integers(self, *values: int) -> str:
        """A constant vector of integers."""
        return self.tensor(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def weight(self, name: str) -> str:
        """A parameter as a constant."""
        return self.tensor(name, self.weights[name])

    def model(self, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self.nodes, "gpt2", inputs, outputs, initializer=list(self.tensors.values())
        )
        domains = sorted({node.domain for node in self.nodes} | {""})
        opsets = [helper.make_opsetid(name, 1 if name else self.opset) for name in domains]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="gptmill"
        )

    def _write_beside(self, data: BinaryIO, proto: TensorProto, values: np.ndarray) -> None:
        data.write(b"\0" * (-data.tell() % DATA_ALIGNMENT))
        proto.data_location = TensorProto.EXTERNAL
        entries = (
            ("location", self._data_name),
            ("offset", data.tell()),
            ("length", values.nbytes),
        )
        for key, value in entries:
            proto.external_data.add(key=key, value=str(value))
        data.write(np.ascontiguousarray(values).data)


# A linear layer as nodes: (graph, input [N, in], parameter name) to [N, out]. The dense one is
# here, quantized ones in `quantize`.
Linear = Callable[[Graph, str, str], str]


def dense(graph: Graph, x: str, name: str) -> str:
    """`x` times a Conv1D matrix [in, out], plus its bias if it has one."""
    return graph.node("Gemm", [x, graph.weight(f"{name}.weight"), *bias_inputs(graph, name)])


def dense_embedding(graph: Graph, ids: str, name: str) -> str:
    """Rows of the matrix [V, C] for ids of any shape."""
    return graph.node("Gather", [graph.weight(f"{name}.weight"), ids])


def dense_head(graph: Graph, x: str, name: str) -> str:
    """`x` times the transpose of a matrix [out, in]; a tied matrix is used as it is stored."""
    return graph.node("Gemm", [x, graph.weight(f"{name}.weight")], transB=1)


@dataclass(frozen=True)
class Layers:
    """How matrices enter the graph: as they are, or quantized."""

    linear: Linear = dense
    embedding: Linear = dense_embedding
    head: Linear = dense_head


DENSE = Layers()


class GPT2Graph:
    """The parts of GPT-2 that the language model and the classifier share, as nodes."""

    def __init__(self, graph: Graph, config: GPT2Config, layers: Layers) -> None:
        self.graph = graph
        self.config = config
        self.layers = layers
        ids = graph.node("Shape", ["input_ids"])
        width = config.width
        self.hidden_shape = self._concatenated([ids, graph.integers(width)])  # B, T, C
        self.heads_shape = self._concatenated(
            [ids, graph.integers(config.heads, width // config.heads)]
        )
        self.flat_shape = graph.integers(-1, width)

    def embed(self, positions: str) -> str:
        """Flat hidden states [B·T, C] of `input_ids` at `positions` [B or 1, T]."""
        x = self.layers.embedding(self.graph, "input_ids", "transformer.wte")
        if "transformer.wpe.weight" in self.graph.weights:
            at = dense_embedding(self.graph, positions, "transformer.wpe")
            x = self.graph.node("Add", [x, at])
        return self.flat(x)

    def flat(self, x: str) -> str:
        """[…, C] as [N, C]."""
        return self.graph.node("Reshape", [x, self.flat_shape])

    def layer_norm(self, x: str, name: str) -> str:
        inputs = [x, self.graph.weight(f"{name}.weight"), *bias_inputs(self.graph, name)]
        return self.graph.node("LayerNormalization", inputs, axis=-1, epsilon=EPSILON)

    def query_key_value(self, x: str, layer: int) -> tuple[str, str, str]:
        """Each [B, H, T, D], the query scaled, from flat [B·T, C]."""
        graph, name = self.graph, f"transformer.h.{layer}"
        fused = self.layers.linear(graph, self.layer_norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn")
        parts = [f"{name}.attn.{part}" for part in ("query", "key", "value")]
        width = self.config.width
        graph.node("Split", [fused, graph.integers(width, width, width)], *parts, axis=-1)
        query, key, value = (graph.node("Reshape", [p, self.heads_shape]) for p in parts)
        scale = np.array((self.config.width // self.config.heads) ** -0.5, np.float32)
        query = graph.node("Mul", [query, graph.tensor("attention_scale", scale)])
        query, key, value = (
            graph.node("Transpose", [p], perm=[0, 2, 1, 3]) for p in (query, key, value)
        )
        return query, key, value

    def attention(self, query: str, key: str, value: str, bias: str) -> str:
        """Context [N, C] of queries [B, H, T, D] over keys and values [B, H, S, D].

        `bias` [B or 1, 1, T, S] is 0 where a query may look and very negative elsewhere.
        """
        graph = self.graph
        key = graph.node("Transpose", [key], perm=[0, 1, 3, 2])
        scores = graph.node("Add", [graph.node("MatMul", [query, key]), bias])
        shares = graph.node("Softmax", [scores], axis=-1)
        context = graph.node("MatMul", [shares, value])
        return self.flat(graph.node("Transpose", [context], perm=[0, 2, 1, 3]))

    def after_attention(self, x: str, context: str, layer: int) -> str:
        """The rest of a block: projection, shortcut, feed-forward, shortcut; flat [N, C]."""
        graph, name, linear = self.graph, f"transformer.h.{layer}", self.layers.linear
        x = graph.node("Add", [x, linear(graph, context, f"{name}.attn.c_proj")])
        inner = linear(graph, self.layer_norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
        inner = ACTIVATIONS[self.config.activation](graph, inner)
        return graph.node("Add", [x, linear(graph, inner, f"{name}.mlp.c_proj")])

    def bias(self, queries: str, keys: str, mask: str) -> str:
        """The attention bias [B, 1, T, S] from positions in the sequence, queries [T, 1] or
        [B, 1, 1, 1] and keys [S], and the mask [B, S]. It is finite, so that a padded query,
        which sees nothing, yields a number."""
        graph = self.graph
        causal = graph.node("LessOrEqual", [keys, queries])
        real = graph.node("Cast", [mask], to=TensorProto.BOOL)
        real = graph.node("Unsqueeze", [real, graph.integers(1, 2)])
        visible = graph.node("And", [causal, real])
        zero = graph.tensor("visible", np.array(0, np.float32))
        hidden = graph.tensor("hidden", np.array(np.finfo(np.float32).min, np.float32))
        return graph.node("Where", [visible, zero, hidden])

    def _concatenated(self, parts: list[str]) -> str:
        return self.graph.node("Concat", parts, axis=0)


def language_model(graph: Graph, config: GPT2Config, layers: Layers) -> ModelProto:
    """One graph for prefill and cached steps.

    Inputs `input_ids` and `position_ids` [B, T], `attention_mask` [B, S] (1 real, 0 padding, on
    either side), `past_key_values.{i}.key/value` [B, H, P, D], P from 0. Outputs `logits`
    [B, T, V] and `present.{i}.key/value` [B, H, S, D].

    `num_logits_to_keep` is an initializer that may be overridden: 0, its value, gives the logits
    of every position; k gives those of the last k, which spares a prefill most of its head.
    """
    gpt2 = GPT2Graph(graph, config, layers)
    past = graph.node("Shape", ["past_key_values.0.key"], start=2, end=3)
    total = graph.node("Shape", ["attention_mask"], start=1, end=2)
    queries = graph.node("Unsqueeze", [_range(graph, past, total), graph.integers(1)])
    keys = _range(graph, graph.integers(0), total)
    bias = gpt2.bias(queries, keys, "attention_mask")
    x = gpt2.embed("position_ids")
    for layer in range(config.layers):
        query, key, value = gpt2.query_key_value(x, layer)
        key, value = (
            graph.node(
                "Concat", [PAST.format(layer, kind), new], PRESENT.format(layer, kind), axis=2
            )
            for kind, new in (("key", key), ("value", value))
        )
        x = gpt2.after_attention(x, gpt2.attention(query, key, value, bias), layer)
    _head(gpt2, x)
    return graph.model(*_language_model_interface(config))


def classifier(graph: Graph, config: GPT2Config, layers: Layers, readout: str) -> ModelProto:
    """`input_ids` and `attention_mask` [B, T] to `logits` [B, labels].

    Args:
        readout: `last_token` reads each row at its last real token, and padding on either side
            changes nothing; `padded_last` reads the last position and takes padding for text, as
            the book does.
    """
    gpt2 = GPT2Graph(graph, config, layers)
    mask = "attention_mask" if readout == "last_token" else _ones_like(graph, "input_ids")
    numbers = _range(graph, graph.integers(0), graph.node("Shape", ["input_ids"], start=1, end=2))
    queries = graph.node("Unsqueeze", [numbers, graph.integers(1)])
    bias = gpt2.bias(queries, numbers, mask)
    x = gpt2.embed(_positions(graph, mask))
    for layer in range(config.layers - 1):
        context = gpt2.attention(*gpt2.query_key_value(x, layer), bias)
        x = gpt2.after_attention(x, context, layer)
    last = graph.node("ArgMax", [graph.node("Mul", [mask, numbers])], axis=1)  # [B, 1]
    x = _last_block(gpt2, x, last, numbers, mask)
    x = gpt2.layer_norm(x, "transformer.ln_f")
    graph.node("Gemm", [x, graph.weight("score.weight")], "logits", transB=1)
    labels = graph.weights["score.weight"].shape[0]
    ids = [_value(name, TensorProto.INT64, "batch_size", "sequence_length") for name in MASKED_IDS]
    return graph.model(ids, [_value("logits", TensorProto.FLOAT, "batch_size", labels)])


def _last_block(gpt2: GPT2Graph, x: str, last: str, numbers: str, mask: str) -> str:
    """The last block at one position of each row, `last` [B, 1]: only its keys and values need
    the others. Returns [B, C]."""
    graph, layer = gpt2.graph, gpt2.config.layers - 1
    query, key, value = gpt2.query_key_value(x, layer)
    # GatherND takes rows [B, T, …] at [B, 1].
    query = graph.node("Transpose", [query], perm=[0, 2, 1, 3])
    query = graph.node("GatherND", [query, last], batch_dims=1)  # [B, H, D]
    query = graph.node("Unsqueeze", [query, graph.integers(2)])
    at = graph.node("Unsqueeze", [last, graph.integers(2, 3)])
    bias = gpt2.bias(at, numbers, mask)
    x = graph.node("GatherND", [graph.node("Reshape", [x, gpt2.hidden_shape]), last], batch_dims=1)
    return gpt2.after_attention(x, gpt2.attention(query, key, value, bias), layer)


def _head(gpt2: GPT2Graph, x: str) -> None:
    """`logits` [B, K, V] of the last `num_logits_to_keep` positions."""
    graph = gpt2.graph
    keep = graph.tensor("num_logits_to_keep", np.zeros(1, np.int64))
    x = graph.node("Reshape", [x, gpt2.hidden_shape])
    end = graph.integers(np.iinfo(np.int64).max)
    x = graph.node("Slice", [x, graph.node("Neg", [keep]), end, graph.integers(1)])
    rows = graph.node("Shape", [x], start=0, end=2)
    shape = graph.node("Concat", [rows, graph.integers(gpt2.config.vocabulary_size)], axis=0)
    x = gpt2.layer_norm(gpt2.flat(x), "transformer.ln_f")
    tied = "lm_head.weight" not in graph.weights
    logits = gpt2.layers.head(graph, x, "transformer.wte" if tied else "lm_head")
    graph.node("Reshape", [logits, shape], "logits")


def _language_model_interface(
    config: GPT2Config,
) -> tuple[list[ValueInfoProto], list[ValueInfoProto]]:
    heads, width = config.heads, config.width // config.heads
    inputs = [
        _value("input_ids", TensorProto.INT64, "batch_size", "sequence_length"),
        _value("attention_mask", TensorProto.INT64, "batch_size", TOTAL),
        _value("position_ids", TensorProto.INT64, "batch_size", "sequence_length"),
    ]
    outputs = [
        _value("logits", TensorProto.FLOAT, "batch_size", "sequence_length", config.vocabulary_size)
    ]
    for layer in range(config.layers):
        for kind in ("key", "value"):
            past, present = PAST.format(layer, kind), PRESENT.format(layer, kind)
            inputs.append(
                _value(past, TensorProto.FLOAT, "batch_size", heads, "past_sequence_length", width)
            )
            outputs.append(_value(present, TensorProto.FLOAT, "batch_size", heads, TOTAL, width))
    # Named as an input too, an initializer is only a default.
    inputs.append(_value("num_logits_to_keep", TensorProto.INT64, 1))
    return inputs, outputs


def _value(name: str, dtype: int, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def bias_inputs(graph: Graph, name: str) -> list[str]:
    """A layer's bias as the inputs it adds: none where the model has none."""
    return [graph.weight(f"{name}.bias")] if f"{name}.bias" in graph.weights else []


def _range(graph: Graph, start: str, end: str) -> str:
    """The integers from `start` to before `end`, both vectors of one."""
    start, end = (graph.node("Squeeze", [value]) for value in (start, end))
    return graph.node("Range", [start, end, graph.tensor("one", np.array(1, np.int64))])


def _ones_like(graph: Graph, ids: str) -> str:
    ones = helper.make_tensor("ones", TensorProto.INT64, [1], [1])
    return graph.node("ConstantOfShape", [graph.node("Shape", [ids])], value=ones)


def _positions(graph: Graph, mask: str) -> str:
    """Positions [B, T] counted over real tokens; padding before them is at 0."""
    counted = graph.node("CumSum", [mask, graph.tensor("one", np.array(1, np.int64))])
    positions = graph.node("Sub", [counted, graph.integers(1)])
    return graph.node("Max", [positions, graph.integers(0)])


def _gelu_tanh(graph: Graph, x: str) -> str:
    return _gelu(graph, x, "tanh")


def _gelu_exact(graph: Graph, x: str) -> str:
    return _gelu(graph, x, "none")


def _gelu(graph: Graph, x: str, approximate: str) -> str:
    return graph.node("Gelu", [x], approximate=approximate)


def _relu(graph: Graph, x: str) -> str:
    return graph.node("Relu", [x])


ACTIVATIONS = {"gelu_new": _gelu_tanh, "gelu": _gelu_exact, "relu": _relu}
