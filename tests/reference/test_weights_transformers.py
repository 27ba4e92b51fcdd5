"""Weights against `transformers`: both ways, four architectures, tokenizer, classifier."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)
from transformers import GPT2Config as TheirConfig

from gptmill.card import ModelCard
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2_SIZES, GPT2Config, gpt2_config
from gptmill.model.gpt2 import GPT2, count_parameters
from gptmill.prompt import format_prompt, message_content
from gptmill.reading import Reading
from gptmill.tokenizer import BytePairTokenizer, load_tokenizer, train_byte_pairs, train_vocabulary
from gptmill.weights.folder import (
    load_classifier,
    load_language_model,
    save_model,
)

TOLERANCE = 1e-4
GREEDY_TOKENS = 64
TEXTS = ["Every effort moves you.", " naïve 東京 <|endoftext|>\n\n  two  spaces", "", "x"]
ENTRY = {"instruction": "Spell the word.", "input": "fox", "output": "f-o-x"}
# Size, layers, vocabulary: real widths throughout, the first two sizes also whole.
QUICK = [("124M", 2, 400), ("355M", 1, 400), ("774M", 1, 400), ("1558M", 1, 400)]
WHOLE = [("124M", 12, 50257), ("355M", 24, 50257), ("774M", 4, 50257), ("1558M", 3, 50257)]
SIZES = [*QUICK, *(pytest.param(*row, marks=pytest.mark.slow) for row in WHOLE)]


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return train_byte_pairs(["Every effort moves you; the quick brown fox is lazy. " * 4], 320)


def architecture(size: str, layers: int, vocabulary: int) -> GPT2Config:
    _, heads, width = GPT2_SIZES[size]
    return GPT2Config(vocabulary, 1024, layers, heads, width)


def liven(model: torch.nn.Module) -> None:
    """Blocks that outweigh the embedding, so that a continuation does not repeat one token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
            elif "c_proj.weight" in name or "wpe" in name:
                parameter.mul_(10)


@torch.no_grad()
def greedy(model: GPT2, ids: torch.Tensor, count: int) -> list[int]:
    """The likeliest token again and again, by nothing but the model and its cache."""
    cache = model.new_cache(1, ids.shape[1] + count)
    tokens = [int(model(ids, cache=cache)[0, -1].argmax())]
    while len(tokens) < count:
        logits = model(torch.tensor([[tokens[-1]]]), cache=cache)
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


@torch.no_grad()
def their_greedy(model: GPT2LMHeadModel, ids: torch.Tensor, count: int) -> list[int]:
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    return out[0, ids.shape[1] :].tolist()


@torch.no_grad()
def assert_equal(ours: GPT2, theirs: GPT2LMHeadModel) -> list[int]:
    """Logits and greedy continuations agree; returns the continuation."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, ours.config.vocabulary_size, (2, 48), generator=generator)
    difference = (ours(ids) - theirs(ids).logits).abs().max()
    assert difference < TOLERANCE
    continuation = greedy(ours, ids[:1, :16], GREEDY_TOKENS)
    assert continuation == their_greedy(theirs, ids[:1, :16], GREEDY_TOKENS)
    return continuation


@pytest.mark.parametrize(("size", "layers", "vocabulary"), SIZES)
def test_ours_in_theirs(
    size: str, layers: int, vocabulary: int, tmp_path: Path, tokenizer: BytePairTokenizer
) -> None:
    torch.manual_seed(0)
    ours = GPT2(architecture(size, layers, vocabulary)).eval()
    liven(ours)
    save_model(tmp_path / "model", ours, tokenizer, provenance={})
    theirs, report = GPT2LMHeadModel.from_pretrained(
        tmp_path / "model", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    assert theirs.num_parameters() == count_parameters(ours)
    assert len(set(assert_equal(ours, theirs.eval()))) > 4


@pytest.mark.slow
def test_the_whole_124m_there_and_back_in_shards(
    tmp_path: Path, tokenizer: BytePairTokenizer
) -> None:
    torch.manual_seed(0)
    ours = GPT2(gpt2_config("124M"))
    save_model(tmp_path / "model", ours, tokenizer, provenance={})
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    theirs.save_pretrained(tmp_path / "back", max_shard_size="200MB")
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) == 3
    back = load_language_model(tmp_path / "back")
    for name, parameter in ours.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name


@pytest.mark.parametrize(
    ("size", "layers", "vocabulary", "shard"),
    [*((*row, "1GB") for row in QUICK), ("124M", 2, 400, "8MB")],
)
def test_theirs_in_ours(
    size: str, layers: int, vocabulary: int, shard: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    _, heads, width = GPT2_SIZES[size]
    config = TheirConfig(vocab_size=vocabulary, n_layer=layers, n_head=heads, n_embd=width)
    theirs = GPT2LMHeadModel(config).eval()
    liven(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "1GB")
    assert (len(list(tmp_path.glob("model-*.safetensors"))) > 1) == (shard == "8MB")
    ours = load_language_model(tmp_path)
    assert ours.lm_head.weight is ours.transformer.wte.weight
    assert count_parameters(ours) == theirs.num_parameters()
    assert len(set(assert_equal(ours, theirs))) > 4


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": False},
        {"positions": "none"},
        {"tied_head": False},
        {"activation": "relu"},
        {"activation": "gelu"},
    ],
    ids=str,
)
def test_what_plain_gpt2_lacks(changes: dict, tmp_path: Path, tokenizer: BytePairTokenizer) -> None:
    torch.manual_seed(0)
    ours = GPT2(GPT2Config(320, 128, 2, 2, 64, **changes)).eval()
    liven(ours)
    save_model(tmp_path / "model", ours, tokenizer, provenance={})
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(report.values()), report
    assert_equal(ours, theirs.eval())


@pytest.fixture(scope="module")
def instruction_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: BytePairTokenizer
) -> Callable[[str], Path]:
    model = GPT2(GPT2Config(320, 128, 1, 2, 32))

    def folder(style: str) -> Path:
        path = tmp_path_factory.mktemp(style) / "model"
        save_model(path, model, tokenizer, provenance={}, prompt_style=style)
        return path

    return folder


def test_the_tokenizer_opens(
    instruction_folder: Callable[[str], Path], tokenizer: BytePairTokenizer
) -> None:
    folder = instruction_folder("alpaca")
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        plain = text.replace("<|endoftext|>", "")
        assert theirs(plain)["input_ids"] == tokenizer.encode(plain)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.pad_token_id == theirs.eos_token_id == tokenizer.end_of_text
    assert theirs.model_max_length == 128


@pytest.mark.parametrize("kind", ["character", "word"])
def test_trained_vocabularies_open_too(kind: str, tmp_path: Path) -> None:
    text = 'Hello, world! "It\'s" (fine) -- yes; no?  x\n\ny naïve'
    tokenizer = train_vocabulary([text], kind, 80)
    model = GPT2(GPT2Config(tokenizer.vocabulary_size, 128, 1, 1, 8))
    save_model(tmp_path / "model", model, tokenizer, provenance={})
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    for given in (text, "Hello,world !", "? zebra", "", "x"):
        ids = tokenizer.encode(given)
        assert theirs(given)["input_ids"] == ids
        assert theirs.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("style", ["alpaca", "phi3"])
@pytest.mark.parametrize("given", ["fox", ""])
def test_the_chat_template_renders_the_training_prompt(
    style: str, given: str, instruction_folder: Callable[[str], Path]
) -> None:
    folder = instruction_folder(style)
    entry = {**ENTRY, "input": given}
    prompt = format_prompt(entry, style)
    messages = [{"role": "user", "content": message_content(entry, style)}]
    theirs = AutoTokenizer.from_pretrained(folder)
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == prompt
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == load_tokenizer(folder).encode(prompt)


@pytest.mark.parametrize("readout", ["last_token", "padded_last"])
def test_the_classifier_with_padding(
    readout: str, tmp_path: Path, tokenizer: BytePairTokenizer
) -> None:
    torch.manual_seed(0)
    ours = GPT2Classifier(GPT2Config(320, 64, 2, 2, 32), 3).eval()
    liven(ours)
    labels = ["ham", "spam", "other"]
    save_model(
        tmp_path / "model",
        ours,
        tokenizer,
        provenance={},
        reading=Reading(tuple(labels), readout=readout),
    )
    theirs, report = GPT2ForSequenceClassification.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(report.values()), report
    assert theirs.config.id2label == dict(enumerate(labels))
    batch = AutoTokenizer.from_pretrained(tmp_path / "model")(
        ["Every effort moves you", "fox", "lazy quick brown fox"],
        padding="max_length",
        max_length=20,
        return_tensors="pt",
    )
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert (mask.sum(1) < 20).all()
    loaded = load_classifier(tmp_path / "model")
    with torch.no_grad():
        if readout == "last_token":
            expected = theirs(ids, attention_mask=mask).logits
            results = [ours(ids, mask), loaded(ids, mask)]
            # Padding changes nothing: each text alone, without any.
            alone = [theirs(row[None, : int(n)]).logits[0] for row, n in zip(ids, mask.sum(1))]
            results.append(torch.stack(alone))
        else:
            expected = theirs(ids).logits
            results = [ours(ids), loaded(ids)]
    for result in results:
        assert (result - expected).abs().max() < TOLERANCE


def test_their_classifier_in_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TheirConfig(
        vocab_size=320, n_positions=64, n_layer=2, n_head=2, n_embd=32, pad_token_id=319
    )
    theirs = GPT2ForSequenceClassification(config).eval()  # two labels, which its config omits
    theirs.save_pretrained(tmp_path)
    ours = load_classifier(tmp_path)
    ids = torch.randint(0, 319, (2, 9))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < TOLERANCE


# --- The folders of a pipeline that has run here

OWN = ["pretrained", "foundation/classifier", "foundation/instructions", "instructions"]


def own_folder(name: str) -> Path:
    folder = Path("models") / name
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: run the pipeline")
    return folder


@pytest.mark.parametrize("name", OWN)
def test_the_pipelines_own_language_models(name: str) -> None:
    folder = own_folder(name)
    ours = load_language_model(folder)
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert_equal(ours, theirs.eval())
    tokenizer, their_tokenizer = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        plain = text.replace("<|endoftext|>", "")
        assert their_tokenizer(plain)["input_ids"] == tokenizer.encode(plain)
        assert their_tokenizer.decode(tokenizer.encode(text)) == tokenizer.decode(
            tokenizer.encode(text)
        )


def test_the_pipelines_own_chat_template() -> None:
    folder = own_folder("instructions")
    style = ModelCard.read(folder).prompt_style
    messages = [{"role": "user", "content": message_content(ENTRY, style)}]
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert rendered == format_prompt(ENTRY, style)


def test_the_pipelines_own_classifier() -> None:
    folder = own_folder("classifier")
    ours, theirs = load_classifier(folder), GPT2ForSequenceClassification.from_pretrained(folder)
    texts = ["you have won the key!", "see you at the park this evening, Ruth"]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = ours(batch["input_ids"], batch["attention_mask"])
        assert (found - theirs(**batch).logits).abs().max() < TOLERANCE
    assert theirs.config.id2label == dict(enumerate(ModelCard.read(folder).reading.labels))
