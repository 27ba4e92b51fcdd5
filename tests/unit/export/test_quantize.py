import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from gptmill.errors import UserError
from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.export.parity import (
    classifier_reference,
    measure_classifier,
    measure_language_models,
    text_passages,
)
from gptmill.export.quantize import (
    METHODS,
    keep_within_budget,
    outside_budget,
    quantize_blocks,
    quantize_columns,
    quantized,
)
from gptmill.params import Budget

PROMPTS = ["the cat sat on the mat", "the dog ran over the hill and the mat"]
BUDGET = Budget(perplexity_increase=0.01, accuracy_loss=0.005, greedy_agreement=0.9)
INSIDE = {"perplexity_increase": 0.0, "greedy_agreement": 1.0}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [32, 64, 40, 7])
def test_rounded_blocks_are_within_half_a_step(bits, columns):
    matrix = np.random.default_rng(0).normal(size=(5, columns)).astype(np.float32)
    matrix[1, :] = 0
    integers, scales = quantize_blocks(matrix, bits)
    if bits == 4:
        integers = np.stack([integers & 15, integers >> 4], axis=-1).reshape(*scales.shape, 32)
    floats = (integers.astype(np.float32) - 2 ** (bits - 1)) * scales[:, :, None]
    error = np.abs(floats.reshape(5, -1)[:, :columns] - matrix)
    assert (error <= np.repeat(scales, 32, axis=1)[:, :columns] * 0.5001).all()
    assert scales[0, 0] == pytest.approx(np.abs(matrix[0, :32]).max() / (2 ** (bits - 1) - 1))


def test_rounded_columns_are_within_half_a_step():
    matrix = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    matrix[:, 2] = 0
    integers, scales = quantize_columns(matrix)
    centered = integers.astype(np.float32) - 128
    assert (np.abs(centered * scales - matrix) <= scales * 0.5001).all()
    assert (np.abs(centered).max(axis=0) == [127, 127, 0, 127, 127]).all()


def test_products_of_8_bits_are_exact_on_every_processor(make_language_model, tmp_path):
    """Without VNNI, pairs of uint8 × int8 products saturate: ours must be the operators' own."""
    folder = make_language_model(width=128)
    export_language_model(folder, tmp_path / "onnx", opset=20, layers=quantized("dynamic8"))
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert products
    for product in products:
        weights, zero = (tensors[product.input[at]] for at in (1, 3))
        assert zero == 128  # what `quantize_columns` rounds around
        x = np.full((2, len(weights)), 255, np.uint8)  # the largest, which saturates first
        names = ["x", product.input[1], "zero", product.input[3]]
        arrays = (weights, np.zeros((), np.uint8), zero)
        constants = [numpy_helper.from_array(a, name) for a, name in zip(arrays, names[1:])]
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", names, ["y"])], "product",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.INT32, None)], constants,
        )  # fmt: skip
        alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        (y,) = InferenceSession(alone.SerializeToString()).run(None, {"x": x})
        assert (y == x.astype(np.int64) @ (weights.astype(np.int64) - zero)).all()


@pytest.mark.parametrize("changes", [{}, {"width": 24}, {"bias": False}, {"tied_head": False}])
@pytest.mark.parametrize("method, largest", [("weights8", 0.5), ("weights4", 6), ("dynamic8", 0.8)])
def test_quantized_language_models_stay_close(
    method, largest, changes, make_language_model, tmp_path
):
    folder = make_language_model(**changes)
    export_language_model(folder, tmp_path / "onnx", opset=20, layers=quantized(method))
    passages = text_passages(PROMPTS, folder)
    (measured,) = measure_language_models([tmp_path / "onnx"], folder, passages, 4, threads=1)
    # Logits here have a deviation of about 3; 8 bits are closer than 4.
    assert 0 < measured["max_abs_difference"] < largest
    onnx.checker.check_model(onnx.load(tmp_path / "onnx" / "model.onnx"))


@pytest.mark.parametrize("method", METHODS)
def test_quantized_classifiers_stay_close(method, classifier, tmp_path):
    export_classifier(classifier, tmp_path / "onnx", opset=20, layers=quantized(method))
    reference = classifier_reference(tmp_path / "onnx", classifier, PROMPTS)
    measured = measure_classifier(tmp_path / "onnx", reference, PROMPTS, [0, 1], threads=1)
    assert 0 < measured["max_abs_difference"] < (0.5 if method != "weights4" else 3)


def test_quantized_bytes_are_the_same_every_time_and_fewer(make_language_model, tmp_path):
    folder = make_language_model(width=128)
    sizes = {}
    for method in METHODS:
        for name in ("a", "b"):
            export_language_model(folder, tmp_path / name, opset=20, layers=quantized(method))
        first, second = ((tmp_path / n / "model.onnx").read_bytes() for n in ("a", "b"))
        assert first == second
        sizes[method] = len(first)
    export_language_model(folder, tmp_path / "float", opset=20)
    whole = (tmp_path / "float" / "model.onnx").stat().st_size
    assert sizes["weights4"] < sizes["dynamic8"] < sizes["weights8"] < 0.35 * whole


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="unknown quantization 'int3'; known: weights8"):
        quantized("int3")


@pytest.mark.parametrize(
    "change",
    [
        {"perplexity_increase": 0.011},
        {"perplexity_increase": float("nan")},
        {"greedy_agreement": 0.89},
        {"accuracy_loss": 0.006},
    ],
    ids=str,
)
def test_outside_the_budget(change):
    measured = {f"lm/{key}": value for key, value in {**INSIDE, **change}.items()}
    (fault,) = outside_budget(BUDGET, measured, "lm/")
    assert fault.startswith(f"{next(iter(change))} is ")


def test_the_budget_itself_is_inside():
    assert outside_budget(BUDGET, {"perplexity_increase": 0.01, "greedy_agreement": 0.9}) == []
    assert outside_budget(BUDGET, {"accuracy_loss": -0.2}) == []


@pytest.mark.parametrize("published", [True, False])
def test_only_a_model_inside_its_budget_is_published(published, tmp_path, capsys):
    folder = tmp_path / "int8"
    folder.mkdir()
    (folder / "model.onnx").touch()
    measured = {"int8/perplexity_increase": 0.0 if published else 0.5}
    assert keep_within_budget(folder, BUDGET, measured, "int8/") == published
    assert folder.exists() == published
    said = (
        "" if published else "int8 is not published: perplexity_increase is 0.5, the budget 0.01\n"
    )
    assert capsys.readouterr().err == said
