import numpy as np
import onnx
import pytest
import torch

from gptmill.errors import UserError
from gptmill.export import onnx as export
from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.files import read_json, sha256_tree
from gptmill.runtime.session import OnnxDecoder, open_session
from gptmill.weights.folder import load_language_model
from tests.support.unsealed import unsealed

IDS = [[5, 17, 2, 260, 9], [30, 3, 3, 270, 1]]


def logits(onnx_folder, ids=IDS):
    ids = np.array(ids)
    session = open_session(onnx_folder, 1)
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy(),
    }
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32)
    return session.run(["logits"], feeds)[0]


def torch_logits(folder, ids=IDS):
    with torch.inference_mode():
        return load_language_model(folder)(torch.tensor(ids)).numpy()


@pytest.mark.parametrize("write", ["export_language_model", "export_classifier"])
def test_the_same_weights_give_the_same_bytes_in_any_folder(write, request, tmp_path):
    source = request.getfixturevalue(write.removeprefix("export_"))
    for output in (tmp_path / "a", tmp_path / "deeper" / "b"):
        getattr(export, write)(source, output, opset=20)
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "deeper" / "b")
    for path in (tmp_path / "a").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(source).encode() not in path.read_bytes()


def test_the_graph_has_the_names_and_axes_of_the_ecosystem(language_model_onnx):
    model = onnx.load(language_model_onnx / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    total = "past_sequence_length + sequence_length"
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", total]
    assert shapes["logits"] == ["batch_size", "sequence_length", 280]
    for layer in range(2):
        for kind in ("key", "value"):
            past = shapes[f"past_key_values.{layer}.{kind}"]
            assert past == ["batch_size", 4, "past_sequence_length", 8]
            assert shapes[f"present.{layer}.{kind}"] == ["batch_size", 4, total, 8]
    # What runtimes that know nothing of num_logits_to_keep are asked for.
    inputs = {value.name for value in open_session(language_model_onnx).get_inputs()}
    assert inputs == {name for name in shapes if not name.startswith(("logits", "present", "num"))}
    assert {opset.domain for opset in model.opset_import} == {""}  # standard operators alone


def test_the_tied_matrix_is_stored_once(language_model, language_model_onnx):
    parameters = sum(p.numel() for p in load_language_model(language_model).parameters())
    size = (language_model_onnx / "model.onnx").stat().st_size
    assert 4 * parameters < size < 4 * parameters + 280 * 32 * 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"positions": "none"},
        {"tied_head": False},
        {"activation": "gelu"},
        {"activation": "relu"},
        {"layers": 1, "heads": 1, "width": 7},
    ],
    ids=str,
)
def test_logits_equal_pytorchs(changes, make_language_model, tmp_path):
    folder = make_language_model(**changes)
    export_language_model(folder, tmp_path / "onnx", opset=20)
    np.testing.assert_allclose(logits(tmp_path / "onnx"), torch_logits(folder), atol=1e-4)


def test_weights_past_the_limit_lie_beside_the_graph(
    language_model, language_model_onnx, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "LARGEST_SINGLE_FILE", 1000)
    for name in ("a", "b"):
        export_language_model(language_model, tmp_path / name, opset=20)
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")
    assert (tmp_path / "a" / "model.onnx").stat().st_size < 50_000
    onnx.checker.check_model(str(tmp_path / "a" / "model.onnx"))
    np.testing.assert_array_equal(logits(tmp_path / "a"), logits(language_model_onnx))
    (tmp_path / "a" / "model.onnx_data").unlink()
    with pytest.raises(UserError, match=r"model.onnx_data is missing"):
        open_session(tmp_path / "a")
    with pytest.raises(UserError, match=r"model.onnx cannot be loaded"):
        open_session(unsealed(tmp_path / "a"))


def test_an_old_opset_is_refused_and_the_former_folder_stays(language_model, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "kept").touch()
    with pytest.raises(UserError, match=r"opset: 17 is under 20"):
        export_language_model(language_model, tmp_path / "onnx", opset=17)
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert (tmp_path / "onnx" / "kept").exists()


@pytest.mark.parametrize("opset", [21, 23])
def test_newer_opsets(opset, language_model, language_model_onnx, tmp_path):
    export_language_model(language_model, tmp_path / "onnx", opset=opset)
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    assert model.opset_import[0].version == opset
    np.testing.assert_allclose(logits(tmp_path / "onnx"), logits(language_model_onnx), atol=1e-5)


def test_a_classifier_is_no_language_model_and_the_reverse(language_model, classifier, tmp_path):
    with pytest.raises(UserError, match="is a classifier"):
        export_language_model(classifier, tmp_path / "onnx", opset=20)
    with pytest.raises(UserError, match="is not a classifier"):
        export_classifier(language_model, tmp_path / "onnx", opset=20)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_describes_itself(language_model, language_model_onnx):
    for name in ("config.json", "generation_config.json", "tokenizer.json", "provenance.json"):
        assert (language_model_onnx / name).read_bytes() == (language_model / name).read_bytes()
    assert not (language_model_onnx / "model.safetensors").exists()
    genai = read_json(language_model_onnx / "genai_config.json")["model"]
    assert (genai["vocab_size"], genai["context_length"], genai["eos_token_id"]) == (280, 24, 279)
    assert (genai["decoder"]["num_hidden_layers"], genai["decoder"]["head_size"]) == (2, 8)


def test_logits_of_the_last_positions_alone(language_model_onnx):
    every = logits(language_model_onnx)
    decoder = OnnxDecoder(open_session(language_model_onnx, 1), 24)
    ids = np.array(IDS)
    np.testing.assert_allclose(decoder.prefill(ids, np.ones_like(ids)), every[:, -1], atol=1e-5)
