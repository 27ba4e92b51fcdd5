import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from gptmill.errors import UserError
from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.runtime import session as session_module
from gptmill.runtime.session import Classifier, Generator, OnnxDecoder, open_session
from gptmill.weights.folder import load_classifier, load_language_model
from tests.support.unsealed import unsealed

CONTEXT = 24
PROMPTS = ["the cat", "the dog ran over the", "a", "mat"]


def token_ids(*shape):
    return np.random.default_rng(0).integers(0, 280, shape)


@pytest.fixture
def decoders(language_model, language_model_onnx):
    ours = OnnxDecoder(open_session(language_model_onnx, 1), CONTEXT)
    return ours, TorchDecoder(load_language_model(language_model))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [1, 2, CONTEXT - 1, CONTEXT])
def test_prefill_and_steps_to_the_end_of_the_context(batch, tokens, decoders):
    ids = token_ids(batch, CONTEXT)
    mask = np.ones((batch, tokens), np.int64)
    ours, theirs = (decoder.prefill(ids[:, :tokens], mask) for decoder in decoders)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for at in range(tokens, CONTEXT):
        ours, theirs = (decoder.step(ids[:, at]) for decoder in decoders)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_ragged_batch_gives_what_each_row_gives_alone(decoders):
    ours, theirs = decoders
    ids = token_ids(3, 10)
    mask = np.ones_like(ids)
    mask[1, :6] = 0
    mask[2, :9] = 0
    batch = [ours.prefill(ids, mask), ours.step(ids[:, 0]), ours.step(ids[:, 1])]
    for row in range(3):
        alone = ids[row : row + 1, (10 - mask[row].sum()) :]
        expected = theirs.prefill(alone, np.ones_like(alone))
        np.testing.assert_allclose(batch[0][row : row + 1], expected, atol=1e-4)
        for step in (0, 1):
            expected = theirs.step(ids[row : row + 1, step])
            np.testing.assert_allclose(batch[step + 1][row : row + 1], expected, atol=1e-4)


def test_rows_kept_go_on_as_before(decoders):
    ids, mask = token_ids(3, 8), np.ones((3, 8), np.int64)
    mask[0, :5] = 0
    for decoder in decoders:
        decoder.prefill(ids, mask)
        decoder.step(ids[:, 0])
        decoder.keep(np.array([0, 2]))
    ours, theirs = (decoder.step(ids[:2, 1]) for decoder in decoders)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("first", "second"), [(8, 3), (3, 8), (5, 5)])
def test_rows_that_join_and_leave_go_on_as_alone(first, second, decoders):
    """A batch grows and shrinks between steps; each row's logits are what it gives alone."""
    ours, alone = decoders
    rows = [token_ids(1, length) for length in (first, second)]
    alone.prefill(rows[1], np.ones_like(rows[1]))
    ours.prefill(rows[0], np.ones_like(rows[0]))
    late = ours.sibling()
    late.prefill(rows[1], np.ones_like(rows[1]))
    ours._buffers[1] = np.full(2**16, np.nan, np.float32)  # what padding might lie on
    ours.join(late)
    np.testing.assert_allclose(
        ours.step(np.array([3, 7]))[1:], alone.step(np.array([7])), atol=1e-4
    )
    ours.keep(np.array([1]))
    for token in (9, 11):
        expected = alone.step(np.array([token]))
        np.testing.assert_allclose(ours.step(np.array([token])), expected, atol=1e-4)
    assert ours._length == second + 3  # no column is left that padded the row which is gone
    ours.keep(np.array([], np.int64))
    ours.join(late)  # into nothing
    np.testing.assert_allclose(ours.step(np.array([7])), late.step(np.array([7])), atol=1e-6)


def test_a_second_prefill_forgets_the_first(decoders):
    ours, _ = decoders
    ids = token_ids(2, 5)
    first = ours.prefill(ids, np.ones_like(ids))
    ours.step(ids[:, 0])
    ours.prefill(token_ids(4, 9), np.ones((4, 9), np.int64))
    np.testing.assert_array_equal(ours.prefill(ids, np.ones_like(ids)), first)


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(max_new_tokens=40),  # slides past the context
        SamplingOptions(max_new_tokens=15, temperature=0.8, top_k=20, top_p=0.9, seed=7),
    ],
    ids=["greedy", "sampled"],
)
def test_the_same_tokens_as_pytorch(options, tokenizer, language_model, language_model_onnx):
    ours = Generator(language_model_onnx, threads=1).generate(PROMPTS, options)
    decoder = TorchDecoder(load_language_model(language_model))
    assert ours == generate(decoder, tokenizer, PROMPTS, options)
    assert len({completion.text for completion in ours}) > 1


def test_a_stream_is_what_generate_returns(language_model_onnx):
    generator = Generator(language_model_onnx, threads=1)
    options = SamplingOptions(max_new_tokens=12, temperature=1.0, seed=3)
    pieces = list(generator.stream("the cat", options))
    assert len(pieces) > 1
    assert "".join(pieces) == generator.generate(["the cat"], options)[0].text


def test_the_folders_own_stop_tokens_end_a_response(
    make_language_model, language_model_onnx, tmp_path
):
    options = SamplingOptions(max_new_tokens=12)
    free = Generator(language_model_onnx, threads=1).generate(["the cat"], options)[0]
    stop = next(token for token in free.ids if token != free.ids[0])
    folder = make_language_model(stop_tokens=[279, stop])
    export_language_model(folder, tmp_path / "onnx", opset=20)
    stopped = Generator(tmp_path / "onnx", threads=1).generate(["the cat"], options)[0]
    assert stopped.stop_reason == "stop_token"
    assert stopped.ids == free.ids[: free.ids.index(stop)]


def test_a_prompt_keeps_its_draws_in_any_batch(language_model_onnx):
    options = SamplingOptions(max_new_tokens=12, temperature=1.0, seed=3)
    generator = Generator(language_model_onnx, threads=1)
    together = generator.generate(PROMPTS, options)
    for index in (3, 1):
        assert generator.generate([PROMPTS[index]], options, [index]) == [together[index]]
    assert generator.generate([PROMPTS[3]], options) != [together[3]]  # draws of number 0


def test_classifying_equals_pytorch_whatever_the_batch(
    classifier, classifier_onnx, tokenizer, monkeypatch
):
    texts = ["the cat", "a", "the dog ran over the hill and the cat sat on it", "mat", "on on"]
    ours = Classifier(classifier_onnx, threads=1)
    model = load_classifier(classifier)
    for tokens in (1, 20, 2048):  # alone, in several batches, in one
        monkeypatch.setattr(session_module, "BATCH_TOKENS", tokens)
        for text, result in zip(texts, ours.classify(texts), strict=True):
            ids = torch.tensor([tokenizer.encode(text)[:12]])
            with torch.inference_mode():
                expected = model(ids, torch.ones_like(ids)).softmax(dim=1)[0].tolist()
            assert list(result.probabilities.values()) == pytest.approx(expected, abs=1e-5)
            assert result.label == ["ham", "spam", "other"][int(np.argmax(expected))]
    assert ours.classify([]) == []


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [0, 279])
def test_padding_changes_nothing(side, padding, classifier_onnx):
    session = open_session(classifier_onnx, 1)
    ids = token_ids(1, 5)
    widths = ((0, 0), (6, 0) if side == "left" else (0, 6))
    plain, padded = (
        session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
        for ids, mask in (
            (ids, np.ones_like(ids)),
            (
                np.pad(ids, widths, constant_values=padding),
                np.pad(np.ones_like(ids), widths),
            ),
        )
    )
    np.testing.assert_allclose(plain, padded, atol=1e-5)


def test_the_books_readout_pads_as_in_training(make_classifier, tokenizer, tmp_path):
    folder = make_classifier("padded_last")
    export_classifier(folder, tmp_path / "onnx", opset=20)
    ids = tokenizer.encode("the cat")
    padded = torch.tensor([[*ids, *[tokenizer.end_of_text] * (12 - len(ids))]])
    with torch.inference_mode():
        expected = load_classifier(folder)(padded).softmax(dim=1)[0].tolist()
    result = Classifier(tmp_path / "onnx", threads=1).classify(["the cat"])[0]
    assert list(result.probabilities.values()) == pytest.approx(expected, abs=1e-5)


def test_an_empty_text_is_refused_by_its_place(classifier_onnx):
    with pytest.raises(UserError, match="text 1 is empty"):
        Classifier(classifier_onnx, threads=1).classify(["the cat", ""])


def test_threads_reach_the_session(language_model_onnx):
    assert open_session(language_model_onnx, 1).get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("bytes_kept", [0, 100, 20_000, -1])
def test_a_damaged_model_is_named(bytes_kept, language_model_onnx, tmp_path):
    folder = shutil.copytree(language_model_onnx, tmp_path / "onnx")
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[:bytes_kept])
    with pytest.raises(UserError, match=r"model.onnx has other bytes than were written"):
        Generator(folder)
    with pytest.raises(UserError, match=r"model.onnx cannot be loaded, export it again"):
        Generator(unsealed(folder))


@pytest.mark.parametrize("name", ["model.onnx", "config.json"])
def test_a_missing_file_is_named(name, language_model_onnx, tmp_path):
    folder = shutil.copytree(language_model_onnx, tmp_path / "onnx")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        Generator(folder)


def test_a_language_model_is_no_classifier(language_model_onnx, classifier_onnx):
    with pytest.raises(UserError, match="is not a classifier"):
        Classifier(language_model_onnx)
    with pytest.raises(UserError, match="is a classifier, not"):
        Generator(classifier_onnx)


CLEAN = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import gptmill
assert "numpy" not in sys.modules, "the front door opens as it is gone through"
from gptmill import Classifier, Generator, SamplingOptions
text = Generator({generator!r}, 1).generate(["the cat"], SamplingOptions(max_new_tokens=5))[0].text
label = Classifier({classifier!r}, 1).classify(["the cat"])[0].label
import json
print(json.dumps([text, label]))
"""


def test_the_front_door_has_three_names_and_no_more() -> None:
    import gptmill

    assert {name: getattr(gptmill, name).__name__ for name in gptmill.__all__} == {
        "Classifier": "Classifier", "Generator": "Generator", "SamplingOptions": "SamplingOptions"
    }  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'GPT2'"):
        _ = gptmill.GPT2


def test_the_runtime_needs_none_of_the_pipelines_packages(language_model_onnx, classifier_onnx):
    forbidden = ["torch", "transformers", "pandas", "pydantic", "onnx", "onnxscript", "tokenizers"]
    forbidden += ["safetensors", "mlflow", "dvc", "sklearn", "ruamel", "yaml", "huggingface_hub"]
    script = CLEAN.format(
        forbidden=forbidden, generator=str(language_model_onnx), classifier=str(classifier_onnx)
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert printed.returncode == 0, printed.stderr
    text, label = json.loads(printed.stdout)
    options = SamplingOptions(max_new_tokens=5)
    assert text == Generator(language_model_onnx, 1).generate(["the cat"], options)[0].text
    assert label == Classifier(classifier_onnx, 1).classify(["the cat"])[0].label
