"""The typed tree behind params.yaml: every experiment value, its meaning, its unit, its bounds.

One class per section, one section per stage (`runtime` serves every stage that computes). There
are no defaults here: params.yaml always says what will run. Unknown, missing and mistyped keys
are errors. This module imports the ground floor alone, so that any room may name these types;
only stages and the command line call `load`.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gptmill.errors import UserError
from gptmill.runtime_sections import Launch, Runtime
from gptmill.sampling_section import Sampling
from gptmill.sources import (
    Entries,
    Labeled,
    Mixed,
    Positive,
    Section,
    Seed,
    Text,
    sections_of,
    sources_of,
)

PRETRAINED = "models/pretrained"  # where dvc.yaml has it
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # of decay or dropout: 1 would leave nothing
# More than these is a slip of the hand: a trillion weights have 128 layers of 25,000.
Blocks = Annotated[int, Field(ge=1, le=1024)]
Rows = Annotated[int, Field(ge=1, le=2**16)]
Width = Annotated[int, Field(ge=1, le=2**17)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]


class Download(Section):
    corpus: Text = Field(description="text to pretrain on")
    classification: Labeled = Field(description="labeled texts")
    instructions: Entries = Field(description="instructions or conversations with their answers")


class Tokenize(Section):
    kind: Literal["gpt2", "bpe", "character", "word", "foundation"] = Field(
        description="gpt2: OpenAI's 50,257 byte pairs; foundation: that of pretrain.foundation; "
        "the others are trained on the corpus"
    )
    vocabulary_size: Tokens = Field(description="entries of a trained BPE, or at most for words")
    validation_fraction: Fraction = Field(description="share of documents held out")
    test_fraction: Fraction = Field(description="share of documents kept for the report")
    shard_tokens: Positive = Field(description="tokens in one memory-mapped file")
    mixture: list[Mixed] = Field(description="corpora drawn from by weight; [] is off")

    @model_validator(mode="after")
    def _something_to_train_on_and_to_validate(self) -> "Tokenize":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction leave nothing to train on: "
                f"{self.validation_fraction} + {self.test_fraction}"
            )
        if not self.validation_fraction:
            raise ValueError("validation_fraction is 0: training chooses its best weights by it")
        return self


class Architecture(Section):
    layers: Blocks = Field(description="transformer blocks")
    heads: Blocks = Field(description="attention heads per block; divides width")
    width: Width = Field(description="embedding width")
    context_length: Tokens = Field(description="positions the model knows, tokens")
    dropout: Rate = Field(description="dropout on embeddings, attention weights, residuals")
    bias: bool = Field(description="biases in linear layers and LayerNorms, as GPT-2 has them")
    activation: Literal["gelu_new", "gelu", "relu"] = Field(description="feed-forward activation")
    tied_head: bool = Field(description="output head shares the token embedding")
    positions: Literal["learned", "none"] = Field(description="position embedding")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Architecture":
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


class Optimizer(Section):
    learning_rate: float = Field(gt=0, description="peak learning rate")
    final_learning_rate: float = Field(ge=0, description="learning rate the cosine ends at")
    warmup_steps: int = Field(ge=0, description="optimizer steps of linear warmup")
    weight_decay: float = Field(ge=0, description="decoupled weight decay of matrices")
    beta1: Rate = Field(description="decay of the first moment")
    beta2: Rate = Field(description="decay of the second moment")
    gradient_clip: float = Field(ge=0, description="largest global gradient norm; 0 is off")
    muon: float = Field(
        ge=0, description="Muon for matrices in blocks, at this many times learning_rate; 0 AdamW"
    )


class Training(Section):
    batch_size: Rows = Field(description="sequences per micro-batch")
    accumulation: Positive = Field(description="micro-batches per optimizer step")
    evaluate_every: Positive = Field(description="optimizer steps between evaluations")
    save_every: Positive = Field(description="optimizer steps between resumable checkpoints")


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

    @model_validator(mode="after")
    def _strides_within_the_window(self) -> "Pretrain":
        if self.evaluation_stride > self.model.context_length:
            raise ValueError(
                f"evaluation_stride {self.evaluation_stride} is more than model.context_length "
                f"{self.model.context_length}: tokens between two windows would not be scored"
            )
        return self


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


class PrepareClassification(Section):
    balance: Literal["undersample", "natural"] = Field(
        description="equal classes by undersampling, or all texts with class weights"
    )
    stratified: bool = Field(
        description="split each label by itself; false draws from all, as the book does. Splits "
        "that the source gives are kept"
    )
    train_fraction: Fraction = Field(description="share of texts to train on")
    validation_fraction: Fraction = Field(description="share to choose by; the rest is the test")

    @model_validator(mode="after")
    def _three_splits(self) -> "PrepareClassification":
        if not (self.train_fraction and self.validation_fraction) or (
            self.train_fraction + self.validation_fraction >= 1
        ):
            raise ValueError(
                "train_fraction and validation_fraction must both be above 0 and leave a test: "
                f"{self.train_fraction} + {self.validation_fraction}"
            )
        return self


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
    long_texts: Literal["head", "tail", "windows"] = Field(
        description="of a longer text: its first tokens, its last, or all in windows whose logits "
        "are averaged"
    )
    threshold: float = Field(
        ge=0,
        lt=1,
        description="probability from which the second of two labels is chosen; 0 is found on the "
        "validation split, for macro-F1",
    )
    epochs: Positive
    training: Training
    optimizer: Optimizer


class PrepareInstructions(Section):
    train_fraction: Fraction = Field(description="share of entries to train on")
    test_fraction: Fraction = Field(description="share to answer and judge; the rest validates")
    prompt_style: Literal["alpaca", "phi3"]

    @model_validator(mode="after")
    def _three_splits(self) -> "PrepareInstructions":
        # 0.85 + 0.15 leave 5e-17.
        if not (self.train_fraction and self.test_fraction) or (
            self.train_fraction + self.test_fraction > 1 - 1e-9
        ):
            raise ValueError(
                "train_fraction and test_fraction must both be above 0 and leave some to validate: "
                f"{self.train_fraction} + {self.test_fraction}"
            )
        return self


class FinetuneInstructions(Section):
    mask_prompt: bool = Field(description="no loss on the prompt's tokens")
    allowed_max_length: int = Field(ge=0, description="tokens kept; 0 is the model's context")
    epochs: Positive
    training: Training
    optimizer: Optimizer


class Respond(Section):
    batch_size: Rows = Field(description="prompts answered together")
    sampling: Sampling


class Budget(Section):
    """How much worse than PyTorch a quantized model may be and still be published."""

    perplexity_increase: float = Field(ge=0, description="relative: 0.01 is one per cent")
    accuracy_loss: Fraction = Field(description="share of test texts: 0.005 is half a point")
    greedy_agreement: Fraction = Field(description="least share of PyTorch's greedy tokens taken")


class ExportOnnx(Section):
    opset: Annotated[int, Field(ge=20)] = Field(description="ONNX operator set; GELU needs 20")
    tolerance: float = Field(gt=0, description="largest logit difference to PyTorch")
    greedy_steps: Positive = Field(description="greedy tokens compared with PyTorch")
    quantization: list[Literal["weights8", "weights4", "dynamic8"]] = Field(
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
    seed: Seed = Field(description="the judge's own seed")
    context_length: Positive = Field(description="the judge's num_ctx, tokens")
    timeout: float = Field(gt=0, description="seconds for one request")
    retries: int = Field(ge=0, description="further attempts per entry")
    requests_in_flight: Positive
    minimum_coverage: Fraction = Field(description="share of entries scored, or the stage fails")
    on_failed_controls: Literal["warn", "fail"] = Field(
        description="what a judge that fails its controls does to the stage"
    )
    bootstrap_samples: Positive = Field(description="resamples behind the interval of the mean")

    @field_validator("host")
    @classmethod
    def _names_no_user(cls, host: str) -> str:
        if "@" in host:
            raise ValueError(
                "a user or password would go from here into dvc.lock and git (keys belong into "
                "OPENAI_API_KEY or OLLAMA_API_KEY)"
            )
        return host


class Parameters(Section):
    """The whole of params.yaml."""

    profile: str = Field(description="the profile these values came from")
    runtime: Runtime
    launch: Launch
    download: Download
    tokenize: Tokenize
    pretrain: Pretrain
    study: Study
    load_gpt2: LoadGPT2
    prepare_classification: PrepareClassification
    finetune_classifier: FinetuneClassifier
    prepare_instructions: PrepareInstructions
    finetune_instructions: FinetuneInstructions
    respond: Respond
    export_onnx: ExportOnnx
    judge: Judge

    @model_validator(mode="after")
    def _every_process_has_a_row(self) -> "Parameters":
        for name in ("pretrain", "finetune_classifier", "finetune_instructions"):
            rows = getattr(self, name).training.batch_size
            if rows < self.launch.world_size:
                raise ValueError(
                    f"{name}.training.batch_size {rows} is below the {self.launch.world_size} "
                    "processes of launch: each takes rows of every batch"
                )
        return self

    @model_validator(mode="after")
    def _foundations_know_their_windows(self) -> "Parameters":
        if self.pretrain.foundation.source != "none":
            return self  # which may know more positions than it is trained on
        for task in LoadGPT2.model_fields:
            section, window = getattr(self.load_gpt2, task), self.pretrain.model.context_length
            ours = section.source == "folder" and section.location == PRETRAINED
            if ours and section.context_length > window:
                raise ValueError(
                    f"load_gpt2.{task}.context_length {section.context_length} is more than the "
                    f"{window} positions of {PRETRAINED}, pretrain.model.context_length"
                )
        return self


PARAMS_FILE = Path("params.yaml")
_read: dict[Path, dict[str, Any]] = {}


def load(path: Path = PARAMS_FILE) -> Parameters:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing or malformed, or a key is unknown (the nearest known name
            is given), missing, of the wrong type or out of bounds; every fault is listed.
    """
    values = read_yaml(path)
    _read[path.resolve()] = values
    return parse(values, str(path))


def as_loaded(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """The plain values that this process works with: as `load` found them, whatever was written to
    the file since; read now if they were not loaded.

    Raises:
        UserError: the file is missing or malformed.
    """
    return _read[path.resolve()] if path.resolve() in _read else read_yaml(path)


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
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a mapping of sections")
    return values


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names, as `dvc exp run -S` takes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _fault(fault: Any) -> str:
    """One pydantic error as a line: where, what, and the nearest known name."""
    location = [str(part) for part in fault["loc"]]
    # Of a choice of sources pydantic names the chosen one too, which no key does.
    where = ".".join(p for i, p in enumerate(location) if i != 2 or location[0] != "download")
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_at(location[:-1]), n=1)
        return f"{where}: unknown key" + (f"; did you mean '{near[0]}'?" if near else "")
    if fault["type"] == "missing":
        return f"{where}: missing"
    if fault["type"] == "value_error" and isinstance(fault["input"], dict):
        return f"{where}: {fault['ctx']['error']}"
    return f"{where}: {fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}"


def _keys_at(location: list[str]) -> list[str]:
    kinds: tuple[Any, ...] = (Parameters,)
    for part in location:
        chosen = [k for k in kinds if "source" in k.model_fields and part in sources_of(k)]
        kinds = tuple(chosen) or sections_of(kinds[0].model_fields[part].annotation)
    return list(kinds[0].model_fields)
