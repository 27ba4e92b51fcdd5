"""Model folders: what is written comes back, and every fault is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptmill.card import ModelCard
from gptmill.errors import UserError
from gptmill.files import read_json, sha256_tree, write_json
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2_SIZES, gpt2_config
from gptmill.model.gpt2 import GPT2, count_parameters
from gptmill.reading import Reading
from gptmill.tokenizer import BytePairTokenizer, load_stop_tokens, load_tokenizer, train_vocabulary
from gptmill.weights.folder import (
    load_classifier,
    load_language_model,
    save_model,
)

PUBLISHED = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}
VARIANTS = [
    {},
    {"bias": False},
    {"tied_head": False},
    {"positions": "none"},
    {"activation": "relu"},
    {"activation": "gelu", "dropout": 0.1},
    {"bias": False, "positions": "none", "tied_head": False},
]
Write = Callable[..., Path]


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder: Path, **values: object) -> None:
    write_json(folder / "config.json", read_json(folder / "config.json") | values)


def refusal(folder: Path, context_length: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_language_model(folder, context_length)
    message = str(caught.value)
    assert str(folder) in message
    return message


# --- What is written comes back


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_round_trip(changes: dict, build: Callable[..., GPT2], write: Write) -> None:
    model = build(**changes)
    loaded = load_language_model(write(model))
    assert loaded.config == model.config
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = torch.arange(20)[None]
    torch.testing.assert_close(loaded(ids), model(ids), atol=1e-5, rtol=1e-5)


def test_the_tied_matrix_is_saved_once_and_still_tied(model: GPT2, write: Write) -> None:
    folder = write(model)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded = load_language_model(folder)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert count_parameters(loaded) == count_parameters(model)


def test_a_loaded_model_trains_and_leaves_its_file(model: GPT2, write: Write) -> None:
    folder = write(model)
    before = sha256_tree(folder)
    loaded = load_language_model(folder).train()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-2)
    loaded(torch.arange(20)[None]).logsumexp(-1).mean().backward()
    optimizer.step()
    assert not torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)
    assert sha256_tree(folder) == before


def test_the_same_model_gives_the_same_bytes(model: GPT2, write: Write) -> None:
    first = sha256_tree(write(model, prompt_style="alpaca"))
    assert sha256_tree(write(model, prompt_style="alpaca")) == first


def test_a_failed_save_leaves_the_earlier_folder(
    model: GPT2, build: Callable[..., GPT2], write: Write, tokenizer: BytePairTokenizer
) -> None:
    folder = write(model)
    before = sha256_tree(folder)
    small = build(vocabulary_size=299)
    with pytest.raises(UserError, match="300 tokens and the model only 299"):
        save_model(folder, small, tokenizer, provenance={})
    with pytest.raises(TypeError):
        save_model(folder, model, tokenizer, provenance={"when": object()})
    assert sha256_tree(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_tokenizer_and_settings_travel_with_the_model(
    model: GPT2, write: Write, tokenizer: BytePairTokenizer
) -> None:
    folder = write(model, prompt_style="phi3", stop_tokens=[299, 7])
    assert load_tokenizer(folder).encode("the fox") == tokenizer.encode("the fox")
    assert ModelCard.read(folder).prompt_style == "phi3"
    assert load_stop_tokens(folder) == [299, 7]
    assert read_json(folder / "provenance.json") == {"made": "here"}
    plain = write(model)
    assert ModelCard.read(plain).prompt_style is None
    assert load_stop_tokens(plain) == [tokenizer.end_of_text]


def test_a_character_tokenizer_too(model: GPT2, tmp_path: Path) -> None:
    characters = train_vocabulary(["abc def"], "character", 50)
    save_model(tmp_path / "model", model, characters, provenance={})
    assert load_tokenizer(tmp_path / "model").decode(characters.encode("bad")) == "bad"


@pytest.mark.parametrize("readout", ["last_token", "padded_last"])
def test_classifier_round_trip(readout: str, model: GPT2, write: Write) -> None:
    model = GPT2Classifier(model.config, 3).eval()
    reading = Reading(("ham", "spam", "other"), 9, readout, "windows", 1.7, 0.3)
    folder = write(model, reading=reading)
    loaded = load_classifier(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert ModelCard.read(folder).reading == reading
    assert "is a classifier" in refusal(folder)


def test_a_language_model_is_no_classifier(model: GPT2, write: Write) -> None:
    with pytest.raises(UserError, match="is not a classifier"):
        load_classifier(write(model))


def test_a_shorter_context_crops_the_positions(model: GPT2, write: Write) -> None:
    folder = write(model)
    loaded = load_language_model(folder, context_length=10)
    assert loaded.config.context_length == 10
    ids = torch.arange(10)[None]
    torch.testing.assert_close(loaded(ids), model(ids), atol=1e-5, rtol=1e-5)
    assert "24 positions" in refusal(folder, context_length=25)


@pytest.mark.parametrize("size", GPT2_SIZES)
def test_published_parameter_counts(size: str) -> None:
    with torch.device("meta"):
        assert count_parameters(GPT2(gpt2_config(size))) == PUBLISHED[size]


# --- Folders of others


def test_names_without_their_prefix_masks_and_a_redundant_head(model: GPT2, write: Write) -> None:
    """As `openai-community/gpt2` and `distilbert/distilgpt2` have them."""
    folder = write(model)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    edit_tensors(folder, rename)
    loaded = load_language_model(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    edit_tensors(folder, lambda tensors: tensors["lm_head.weight"][309].add_(1))
    assert "lm_head.weight differs from wte.weight" in refusal(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_with_a_wrapper_s_prefix(prefix: str, model: GPT2, write: Write) -> None:
    """As DistributedDataParallel and torch.compile leave them; a compiled block has it inside."""
    folder = write(model)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            inside = name.replace(".h.0.", ".h.0._orig_mod.")
            tensors[prefix + inside] = tensors.pop(name)

    edit_tensors(folder, rename)
    loaded = load_language_model(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    edit_tensors(folder, lambda tensors: tensors.update({"wte.weight": torch.ones(310, 16)}))
    assert "which are the same" in refusal(folder)


def test_null_in_a_config_is_the_default(model: GPT2, write: Write) -> None:
    folder = write(model)
    left_out = ("n_inner", "resid_pdrop", "activation_function", "layer_norm_epsilon", "id2label")
    left_out += ("tie_word_embeddings", "scale_attn_weights", "gptmill", "architectures")
    edit_config(folder, **dict.fromkeys(left_out))
    card = ModelCard.read(folder)
    assert card.architecture == replace(model.config, dropout=0.1)  # Hugging Face's default
    assert card.reading is None
    assert card.prompt_style is None
    edit_config(folder, architectures=["GPT2ForSequenceClassification"])
    assert ModelCard.read(folder).classifier(folder)[1].labels == ("LABEL_0", "LABEL_1")
    edit_config(folder, architectures=None)
    edit_config(folder, model_type=None)
    assert "model_type is None" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_float32(dtype: torch.dtype, model: GPT2, write: Write) -> None:
    folder = write(model)

    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    edit_tensors(folder, halve)
    loaded = load_language_model(folder)
    expected = model.transformer.h[1].mlp.c_fc.weight.to(dtype).float()
    assert loaded.transformer.h[1].mlp.c_fc.weight.dtype == torch.float32
    assert torch.equal(loaded.transformer.h[1].mlp.c_fc.weight, expected)


def test_a_config_of_hugging_face_needs_no_section_of_ours(model: GPT2, write: Write) -> None:
    folder = write(model)
    config = read_json(folder / "config.json")
    for key in ("gptmill", "tie_word_embeddings", "n_ctx", "dtype"):
        del config[key]
    write_json(folder / "config.json", config | {"task_specific_params": {}, "summary_type": "x"})
    assert ModelCard.read(folder).architecture == model.config


# --- Faults


def test_missing_extra_and_misshapen_tensors(model: GPT2, write: Write) -> None:
    folder = write(model)
    edit_tensors(folder, lambda tensors: tensors.pop("transformer.h.1.ln_2.bias"))
    assert "lacks transformer.h.1.ln_2.bias" in refusal(folder)
    folder = write(model)
    edit_tensors(folder, lambda tensors: tensors.update(adapter=torch.ones(2)))
    assert "has adapter, which no part of the model takes" in refusal(folder)
    folder = write(model)
    name = "transformer.h.0.attn.c_attn.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].t().contiguous()}))
    assert f"{name} is [48, 16] and the config asks for [16, 48]" in refusal(folder)
    folder = write(model)
    edit_tensors(folder, lambda tensors: tensors.update({"wte.weight": torch.ones(310, 16)}))
    assert "both transformer.wte.weight and wte.weight" in refusal(folder).replace(
        "wte.weight and transformer.wte.weight", "transformer.wte.weight and wte.weight"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value: float, model: GPT2, write: Write) -> None:
    folder = write(model)

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value

    edit_tensors(folder, spoil)
    message = refusal(folder)
    assert "transformer.h.1.mlp.c_fc.weight has 1 values that are not finite" in message
    assert "[3, 5]" in message


def test_large_finite_values_pass(model: GPT2, write: Write) -> None:
    folder = write(model)

    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.ln_f.weight"][:] = 3e38  # their sum is infinite

    edit_tensors(folder, enlarge)
    assert load_language_model(folder).transformer.ln_f.weight[0] == 3e38


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 3}, "lacks transformer.h.2."),
        ({"n_layer": 1}, "has transformer.h.1."),
        ({"n_embd": 32}, "asks for"),
        ({"vocab_size": 311}, "is [310, 16] and the config asks for [311, 16]"),
        ({"n_positions": 48}, "is [24, 16] and the config asks for [48, 16]"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
        ({"gptmill": {"bias": False}}, "is not zero"),
        ({"gptmill": {"positions": "none"}}, "transformer.wpe.weight is not zero"),
        ({"gptmill": {"positions": "rotary"}}, "'learned' or 'none'"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"activation_function": "swish"}, "'swish' is none of"),
        ({"n_inner": 7}, "n_inner is 7"),
        ({"n_head": 3}, "16 is not a multiple of heads 3"),
        ({"n_layer": "2"}, "n_layer is '2'"),
        ({"n_layer": True}, "n_layer is True"),
        ({"n_embd": None, "n_inner": 5}, "n_inner is 5"),
        ({"resid_pdrop": "0.1"}, "resid_pdrop is '0.1'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"activation_function": ["gelu"]}, "['gelu'] is none of"),
        ({"gptmill": [1]}, "gptmill is [1], not an object"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
    ids=str,
)
def test_a_config_that_disagrees(changes: dict, message: str, model: GPT2, write: Write) -> None:
    folder = write(model)
    edit_config(folder, **changes)
    assert message in refusal(folder)


def test_no_folder_no_config_no_json(model: GPT2, write: Write) -> None:
    folder = write(model)
    assert "does not exist" in refusal(folder / "absent")
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in refusal(folder)
    (folder / "config.json").write_text(json.dumps([1]))
    assert "not a JSON object" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json does not exist" in refusal(folder)
