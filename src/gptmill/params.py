"""The typed tree behind params.yaml: every experiment value, its meaning, its unit, its bounds.

One class per section, one section per stage (`runtime` serves every stage that computes). There
are no defaults here: params.yaml always says what will run. Unknown, missing and mistyped keys
are errors. This module imports nothing of the house, so that any room may name these types;
only stages and the command line call `load`.
"""

import difflib
import io
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gptmill.errors import UserError
from gptmill.files import atomic_file

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen mapping of known keys and strict types (an integer is accepted as a float)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Runtime(Section):
    seed: int = Field(ge=0, description="seed of every random choice")
    threads: Positive = Field(description="CPU threads; one against two changes the last digits")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        description="compute precision; auto is bfloat16 where the hardware has it natively"
    )
    compile: bool = Field(description="torch.compile the training step; pays after a minute or so")


class Dataset(Section):
    source: str = Field(
        description="'embedded', or a manifest of addresses and SHA-256 hashes; a corpus also "
        "'stdlib', Python's own functions, or a folder of *.txt such as own/text"
    )
    count: Positive = Field(description="documents or entries to make when embedded")
    seed: int = Field(ge=0, description="seed of the embedded source")


class Download(Section):
    corpus: Dataset = Field(description="text to pretrain on")
    spam: Dataset = Field(description="labelled messages")
    instructions: Dataset = Field(description="instruction, input, output entries")


class Tokenize(Section):
    kind: Literal["gpt2", "bpe", "character", "word", "foundation"] = Field(
        description="gpt2: OpenAI's 50,257 byte pairs; foundation: that of pretrain.foundation; "
        "the others are trained on the corpus"
    )
    vocabulary_size: Positive = Field(description="entries of a trained BPE, or at most for words")
    validation_fraction: Fraction = Field(description="share of documents held out")
    test_fraction: Fraction = Field(description="share of documents kept for the report")
    shard_tokens: Positive = Field(description="tokens in one memory-mapped file")


class Architecture(Section):
    layers: Positive = Field(description="transformer blocks")
    heads: Positive = Field(description="attention heads per block; divides width")
    width: Positive = Field(description="embedding width")
    context_length: Positive = Field(description="positions the model knows, tokens")
    dropout: Fraction = Field(description="dropout on embeddings, attention weights, residuals")
    bias: bool = Field(description="biases in linear layers and LayerNorms, as GPT-2 has them")
    activation: Literal["gelu_new", "gelu", "relu"] = Field(description="feed-forward activation")
    tied_head: bool = Field(description="output head shares the token embedding")
    positions: Literal["learned", "none"] = Field(description="position embedding")


class Optimizer(Section):
    learning_rate: float = Field(gt=0, description="peak learning rate")
    final_learning_rate: float = Field(ge=0, description="learning rate the cosine ends at")
    warmup_steps: int = Field(ge=0, description="optimizer steps of linear warmup")
    weight_decay: float = Field(ge=0, description="decoupled weight decay of matrices")
    beta1: Fraction = Field(description="decay of the first moment")
    beta2: Fraction = Field(description="decay of the second moment")
    gradient_clip: float = Field(ge=0, description="largest global gradient norm; 0 is off")
    muon: float = Field(
        ge=0, description="Muon for matrices in blocks, at this many times learning_rate; 0 AdamW"
    )


class Training(Section):
    batch_size: Positive = Field(description="sequences per micro-batch")
    accumulation: Positive = Field(description="micro-batches per optimizer step")
    evaluate_every: Positive = Field(description="optimizer steps between evaluations")
    save_every: Positive = Field(description="optimizer steps between resumable checkpoints")


class Sampling(Section):
    max_new_tokens: Positive = Field(description="tokens to generate at most")
    temperature: float = Field(ge=0, description="0 is greedy")
    top_k: int = Field(ge=0, description="keep the k likeliest tokens; 0 is off")
    top_p: Fraction = Field(description="keep the likeliest tokens of this joint mass; 1 is off")
    min_p: Fraction = Field(description="keep tokens of this share of the likeliest's; 0 is off")
    repetition_penalty: float = Field(gt=0, description="above 1 discourages repeats; 1 is off")
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        strict=False, description="texts that end a continuation, left out of it"
    )


class Start(Section):
    source: Literal["none", "folder", "huggingface", "openai"] = Field(
        description="none: random weights; the others are continued, and their architecture counts"
    )
    location: str = Field(description="folder (own/model is watched), repository, or OpenAI size")
    revision: str = Field(description="commit of the Hugging Face repository; '' otherwise")


class Pretrain(Section):
    foundation: Start
    model: Architecture = Field(
        description="what is trained; of a continued foundation dropout and the window alone"
    )
    initial_deviation: float = Field(
        gt=0, description="standard deviation of initial weights; GPT-2 has 0.02"
    )
    embedding_deviation: float = Field(
        gt=0, description="standard deviation of initial token embeddings; GPT-2 has 0.02"
    )
    rows: Literal["windows", "documents"] = Field(
        description="train on windows of the token stream, or on whole documents packed into rows"
    )
    training: Training
    optimizer: Optimizer
    steps: Positive = Field(description="optimizer steps")
    epochs: int = Field(ge=0, description="passes over the training split, instead of steps; 0 off")
    evaluation_tokens: Positive = Field(description="validation tokens behind a curve's point")
    evaluation_stride: Positive = Field(description="tokens between windows of the final figure")
    sample_every: Positive = Field(description="optimizer steps between generated samples")
    prompt: str = Field(description="text that every sample continues")
    sampling: Sampling
    completions: int = Field(
        ge=0, description="held-out Python functions to complete at the end; 0 is off"
    )


class Study(Section):
    tokens: Positive = Field(description="held-out tokens that the study looks at")
    sentence_tokens: Annotated[int, Field(ge=8)] = Field(
        description="tokens of the sentence that attention and loss are drawn on"
    )
    steps: Annotated[int, Field(ge=20)] = Field(description="optimizer steps of each small run")


class Foundation(Section):
    source: Literal["folder", "huggingface", "openai"] = Field(
        description="a local folder, a Hugging Face repository, or an OpenAI checkpoint"
    )
    location: str = Field(description="folder path, repository name, or OpenAI size (124M …)")
    revision: str = Field(description="commit of the Hugging Face repository; '' otherwise")
    context_length: int = Field(ge=0, description="crop positions to this many; 0 keeps them all")
    evaluation_tokens: Positive = Field(description="held-out tokens to measure perplexity on")
    prompt: str = Field(description="text to continue, to see that loading worked")


class LoadGPT2(Section):
    classifier: Foundation
    instructions: Foundation


class PrepareSpam(Section):
    balance: Literal["undersample", "natural"] = Field(
        description="equal classes by undersampling, or all messages with class weights"
    )
    train_fraction: Fraction = Field(description="share of messages to train on")
    validation_fraction: Fraction = Field(description="share to choose by; the rest is the test")


class LowRank(Section):
    rank: Positive = Field(description="rank of the update of each linear layer")
    alpha: float = Field(gt=0, description="the update is scaled by alpha / rank")


class FinetuneClassifier(Section):
    initial_weights: Literal["pretrained", "random"] = Field(
        description="start from the foundation, or from its architecture alone"
    )
    trainable: Literal["head", "last_block", "last_two_blocks", "all", "lora"] = Field(
        description="what is trained beside the head; the final LayerNorm goes with any block, "
        "and with lora only low-rank updates are"
    )
    lora: LowRank
    readout: Literal["last_token", "first_token", "padded_last"] = Field(
        description="classify at the last real token, at the first, or at the last padded "
        "position (the book)"
    )
    maximum_length: int = Field(
        ge=0,
        description="tokens kept, and padded to by padded_last; 0 is the longest training text, "
        "and more than the model's context is the context",
    )
    epochs: Positive
    training: Training
    optimizer: Optimizer


class PrepareInstructions(Section):
    train_fraction: Fraction = Field(description="share of entries to train on")
    test_fraction: Fraction = Field(description="share to answer and judge; the rest validates")
    prompt_style: Literal["alpaca", "phi3"]


class FinetuneInstructions(Section):
    mask_prompt: bool = Field(description="no loss on the prompt's tokens")
    allowed_max_length: int = Field(ge=0, description="tokens kept; 0 is the model's context")
    epochs: Positive
    training: Training
    optimizer: Optimizer


class Respond(Section):
    batch_size: Positive = Field(description="prompts answered together")
    sampling: Sampling


class Budget(Section):
    """How much worse than PyTorch a quantised model may be and still be published."""

    perplexity_increase: float = Field(ge=0, description="relative: 0.01 is one per cent")
    accuracy_loss: Fraction = Field(description="share of test texts: 0.005 is half a point")
    greedy_agreement: Fraction = Field(description="least share of PyTorch's greedy tokens taken")


class ExportOnnx(Section):
    opset: Annotated[int, Field(ge=20)] = Field(description="ONNX operator set; GELU needs 20")
    tolerance: float = Field(gt=0, description="largest logit difference to PyTorch")
    greedy_steps: Positive = Field(description="greedy tokens compared with PyTorch")
    quantisation: list[Literal["weights8", "weights4", "dynamic8"]] = Field(
        description="smaller variants of each model to try: weights of 8 or 4 bits in blocks, or "
        "8-bit columns in standard operators alone"
    )
    budget: Budget = Field(description="what a variant may lose; outside it is not published")


class Judge(Section):
    backend: Literal["reference", "ollama", "openai"] = Field(
        description="reference metrics alone, or an LLM's 0–100 score through Ollama or any "
        "OpenAI-compatible server"
    )
    model: str = Field(description="model that judges")
    host: str = Field(description="address of its server")
    rubric: Literal["graded", "book"] = Field(
        description="wording of the question: ours, which a candidate cannot forge, or the book's"
    )
    control_samples: Positive = Field(description="entries that control the judge")
    seed: int = Field(ge=0, description="the judge's own seed")
    context_length: Positive = Field(description="the judge's num_ctx, tokens")
    timeout: float = Field(gt=0, description="seconds for one request")
    retries: int = Field(ge=0, description="further attempts per entry")
    requests_in_flight: Positive
    minimum_coverage: Fraction = Field(description="share of entries scored, or the stage fails")
    bootstrap_samples: Positive = Field(description="resamples behind the interval of the mean")


class Parameters(Section):
    """The whole of params.yaml."""

    profile: str = Field(description="the profile these values came from")
    runtime: Runtime
    download: Download
    tokenize: Tokenize
    pretrain: Pretrain
    study: Study
    load_gpt2: LoadGPT2
    prepare_spam: PrepareSpam
    finetune_classifier: FinetuneClassifier
    prepare_instructions: PrepareInstructions
    finetune_instructions: FinetuneInstructions
    respond: Respond
    export_onnx: ExportOnnx
    judge: Judge


PARAMS_FILE = Path("params.yaml")


def load(path: Path = PARAMS_FILE) -> Parameters:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing or malformed, or a key is unknown (the nearest known name
            is given), missing, of the wrong type or out of bounds; every fault is listed.
    """
    return parse(read_yaml(path), str(path))


def parse(values: dict[str, Any], origin: str) -> Parameters:
    """Check a tree of plain values; `origin` names it in errors."""
    try:
        return Parameters.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(fault)}" for fault in error.errors())
        raise UserError(f"{origin} does not fit the parameter tree:\n{faults}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Plain values of a YAML 1.2 file, in which `1e-3` is a number, as DVC reads it too."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run from the project's root") from None
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a mapping of sections")
    return values


def _fault(fault: Any) -> str:
    """One pydantic error as a line: where, what, and the nearest known name."""
    location = [str(part) for part in fault["loc"]]
    where = ".".join(location)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_at(location[:-1]), n=1)
        return f"{where}: unknown key" + (f"; did you mean '{near[0]}'?" if near else "")
    if fault["type"] == "missing":
        return f"{where}: missing"
    return f"{where}: {fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}"


def _keys_at(location: list[str]) -> list[str]:
    section: type[Section] = Parameters
    for part in location:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    return list(section.model_fields)


def describe(section: type[Section] = Parameters, prefix: str = "") -> list[tuple[str, str, str]]:
    """Every leaf of the tree as (dotted name, type, meaning)."""
    rows = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            rows += describe(kind, f"{prefix}{name}.")
            continue
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        type_name = " | ".join(choices) or getattr(kind, "__name__", str(kind))
        rows.append((f"{prefix}{name}", type_name, field.description or ""))
    return rows


PROFILES = Path("profiles")


def list_profiles() -> list[tuple[str, str]]:
    """Each profile's name and title, which is the first comment line of its file."""
    rows = []
    for path in sorted(PROFILES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        rows.append((path.stem, first.removeprefix("#").strip()))
    return rows


def apply_profile(name: str, path: Path = PARAMS_FILE) -> None:
    """Write the default profile, then the overlay `profiles/NAME.yaml`, into params.yaml.

    Comments and order of params.yaml stay. The default, `calibration`, names every value, so that
    nothing of the former profile is left.

    Raises:
        UserError: no such profile (the nearest is named), or a result that does not fit the tree;
            params.yaml is then untouched.
    """
    known = [profile for profile, _ in list_profiles()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
        raise UserError(f"no profile '{name}' in {PROFILES}/; {hint}")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000  # leave lines as they are
    document = yaml.load(path.read_text(encoding="utf-8"))
    for overlay in dict.fromkeys(("calibration", name)):
        _overlay(document, read_yaml(PROFILES / f"{overlay}.yaml"))
    document["profile"] = name
    text = io.StringIO()
    yaml.dump(document, text)
    parse(YAML(typ="safe", pure=True).load(text.getvalue()), f"profile {name}")
    with atomic_file(path) as beside:
        beside.write_text(text.getvalue(), encoding="utf-8")


def _overlay(target: dict[str, Any], values: dict[str, Any]) -> None:
    """Set values in place, so that the comments around them survive."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _overlay(target[key], value)
        else:
            target[key] = value
