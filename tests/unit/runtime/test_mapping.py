import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from gptmill.runtime.mapping import mapped_model


def test_a_mapped_model_is_the_model_that_onnx_parses(language_model_onnx):
    path = language_model_onnx / "model.onnx"
    mapped = mapped_model(path)
    assert len(mapped) < path.stat().st_size / 4
    ours, theirs = onnx.load_model_from_string(mapped), onnx.load(path)
    outside = [tensor for tensor in ours.graph.initializer if tensor.external_data]
    assert {"transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"} <= {
        tensor.name for tensor in outside
    }
    load_external_data_for_model(ours, str(language_model_onnx))
    for ours_tensor, theirs_tensor in zip(ours.graph.initializer, theirs.graph.initializer):
        assert ours_tensor.name == theirs_tensor.name
        np.testing.assert_array_equal(
            numpy_helper.to_array(ours_tensor), numpy_helper.to_array(theirs_tensor)
        )
    for model in (ours, theirs):
        model.graph.ClearField("initializer")
    assert ours == theirs


def test_every_kind_of_field_is_kept(tmp_path):
    # varint, 64 bits, bytes, 32 bits: numbers that ModelProto does not use.
    fields = bytes([0x80 | 0x40, 0x07, 0x96, 0x01])  # field 120, varint 150
    fields += bytes([0xC1, 0x07]) + b"12345678"
    fields += bytes([0xC2, 0x07, 3]) + b"abc"
    fields += bytes([0xC5, 0x07]) + b"1234"
    (tmp_path / "model").write_bytes(fields)
    assert mapped_model(tmp_path / "model") == fields


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\xff" * 30, b"\x3a\x7f123", b"\x3b\x01", b"\x08", b"\x3a\xff"],
    ids=["empty", "endless number", "cut short", "group", "no payload", "no length"],
)
def test_what_is_no_protobuf_is_a_value_error(damaged, tmp_path):
    (tmp_path / "model").write_bytes(damaged)
    with pytest.raises(ValueError):
        mapped_model(tmp_path / "model")
