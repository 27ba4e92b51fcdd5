"""What Ollama's clients ask: the bodies of `/api/chat` and `/api/generate`, and their meaning.

Defaults of sampling are Ollama's own, except that repeats are not penalised: models of this size
copy names and numbers on purpose.
"""

import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from gptmill.prompt import format_prompt
from gptmill.sampling_options import SamplingOptions
from gptmill.serve.adjustment import Adjustment
from gptmill.serve.body import (
    MAX_MESSAGES,
    Body,
    ModelName,
    Part,
    Stops,
    numbers,
    sampling,
    stop_strings,
)
from gptmill.serve.language_model import Ask, LanguageModel
from gptmill.serve.prompts import Message, conversation_ids
from gptmill.serve.refusal import Refused
from gptmill.serve.schema import ANY_OBJECT

MAXIMUM_TOP_LOGPROBS = 20
DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
LONGEST = 366 * 24 * 3600.0  # seconds
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def _seconds(value: Any) -> Any:
    """Seconds of a duration as Go writes it ("5m", "-1s") or of a number in quotes."""
    if not isinstance(value, str):
        return value
    text = value.removeprefix("-")
    parts = DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
        return -seconds if value.startswith("-") else seconds
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{value[:40]!r} is not a duration such as 300 or '5m'") from None


def _bounded(seconds: float) -> float:
    """Below 0 or over a year is forever."""
    if math.isnan(seconds):
        raise ValueError("NaN is not a duration")
    return seconds if 0 <= seconds < LONGEST else math.inf


Duration = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=float | str),
    AfterValidator(_bounded),
]


class Options(numbers("ollama")):  # type: ignore[misc]
    """`options` of a request."""

    # They change how fast an answer comes, or how much memory it takes.
    without_effect = frozenset({
        "numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "vocab_only", "use_mmap",
        "use_mlock", "num_thread", "f16_kv", "num_keep", "penalize_newline", "embedding_only",
        "logits_all",
    })  # fmt: skip
    unsupported: ClassVar = {
        "mirostat": (0,), "mirostat_tau": None, "mirostat_eta": None, "typical_p": (1,),
        "tfs_z": (1,),
    }  # fmt: skip

    repeat_last_n: int = -1
    seed: int | None = None
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    num_predict: int = -1
    num_ctx: int | None = Field(None, ge=1)
    stop: Stops = []

    @field_validator("num_predict")
    @classmethod
    def _some(cls, value: int) -> int:
        if value == 0 or value < -2:
            raise ValueError(
                f"{value} is no number of tokens: give 1 or more, -1 for as many as the server "
                "allows, -2 for as many as the context holds"
            )
        return value

    @property
    def penalty(self) -> float:
        """0 of either is off."""
        return 1.0 if self.repeat_penalty == 0 or self.repeat_last_n == 0 else self.repeat_penalty

    @model_validator(mode="after")
    def _whole_history(self) -> "Options":
        if self.penalty != 1 and self.repeat_last_n > 0:
            raise ValueError(
                "repeat_last_n is not supported here, except as -1: a penalty is over all of "
                "prompt and answer"
            )
        return self

    def sampling(self, model: LanguageModel, most: int) -> SamplingOptions:
        """How a model's tokens are chosen, at most so many."""
        return sampling(
            "ollama",
            self,
            max_new_tokens=most,
            top_k=max(0, self.top_k),
            repetition_penalty=self.penalty,
            stop_tokens=model.stop_tokens,
            stop_strings=stop_strings(self.stop),
            seed=self.seed,
        )

    def adjustment(self) -> Adjustment | None:
        """What they do to logits; None for nothing."""
        if not self.presence_penalty and not self.frequency_penalty:
            return None
        return Adjustment({}, self.presence_penalty, self.frequency_penalty)


OPTION_NAMES = {*Options.model_fields, *Options.without_effect, *Options.unsupported}


class Asked(Body):
    """What `/api/chat` and `/api/generate` have in common.

    Options may stand beside `options` too, as clients of other servers put them.
    """

    known_elsewhere = frozenset(OPTION_NAMES)

    model: ModelName
    stream: bool = True
    options: Options = Options()
    format: dict[str, Any] | Literal["", "json"] | None = None
    keep_alive: Duration | None = None
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAXIMUM_TOP_LOGPROBS)
    end_logprob: bool = False  # ours: the page shows the token that ended an answer, too
    truncate: bool = True
    shift: bool = True

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        beside = {name: value[name] for name in OPTION_NAMES & value.keys()}
        options = value.get("options") or {}
        if not beside or not isinstance(options, dict):
            return value
        for name, given in beside.items():
            if name in options and options[name] not in (None, given) and given is not None:
                raise ValueError(f"{name} is {given!r}, and {options[name]!r} in options")
        rest = {name: part for name, part in value.items() if name not in beside}
        given = {name: part for name, part in options.items() if part is not None}
        return {**rest, "options": {**beside, **given}}

    n: ClassVar = 1
    tries: ClassVar = 1
    keeps_scores: ClassVar = True

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """None for prose; an empty schema is any object, as at Ollama."""
        if self.format == "json":
            return ANY_OBJECT
        return self.format if isinstance(self.format, dict) else None

    @property
    def is_empty(self) -> bool:
        """Whether it only asks to load the model, or to unload it."""
        raise NotImplementedError

    def prompt_ids(self, model: LanguageModel, context: int) -> list[int]:
        """The prompt, within so many tokens if it may be truncated."""
        raise NotImplementedError

    def refuse_unsupported(self) -> None:
        """Say no to what would otherwise silently change nothing."""
        for name in ("suffix", "template", "images", "tools", "think"):
            if getattr(self, name, None):
                raise Refused(400, f'"{self.model}" does not support {name}')

    def asks(self, model: LanguageModel, limit: int) -> list[Ask]:
        """What it means to a model; `limit` is how many tokens the server allows."""
        options, schema = self.options, self.schema_wanted
        context = min(options.num_ctx or model.context_length, model.context_length)
        ids = self.prompt_ids(model, context) or [model.tokenizer.beginning_of_text]
        if len(ids) > context and not self.truncate:
            raise Refused(
                400,
                f"the input length exceeds the context length: it has {len(ids)} tokens, the "
                f"context {context}",
            )
        most = _most_tokens(options.num_predict, limit)
        # What a JSON text began with must be in sight to its end.
        unbounded_json = schema is not None and options.num_predict == -1
        if not self.shift or options.num_predict == -2 or unbounded_json:
            most = max(1, min(most, context - len(ids)))
        top = self.top_logprobs if self.logprobs else None
        chosen = options.sampling(model, most)
        return [Ask(ids, chosen, context, top, schema, self.end_logprob, options.adjustment())]


class Generate(Asked):
    """`/api/generate`."""

    prompt: str = ""
    system: str = ""
    raw: bool = False
    context: list[int] = []
    suffix: str = ""
    template: str = ""
    images: list[Any] = []

    @property
    def is_empty(self) -> bool:
        return not (self.prompt or self.context)

    def prompt_ids(self, model: LanguageModel, context: int) -> list[int]:
        text = self.prompt
        if not self.raw:
            if model.prompt_style is not None:
                text = format_prompt({"instruction": text, "input": ""}, model.prompt_style)
            text = f"{self.system}\n\n{text}" if self.system else text
        if any(not 0 <= id < model.tokenizer.vocabulary_size for id in self.context):
            raise Refused(400, "context has ids that this model has not")
        return [*self.context, *model.tokenizer.encode(text)]


class Turn(Part):
    """A message of a chat."""

    unsupported: ClassVar = {
        "tool_calls": ([],), "tool_name": ("",), "tool_call_id": ("",), "thinking": ("",),
    }  # fmt: skip

    role: Literal["system", "user", "assistant"]
    content: str = ""
    images: list[Any] = []


class Chat(Asked):
    """`/api/chat`."""

    messages: Annotated[list[Turn], Field(max_length=MAX_MESSAGES)] = []
    tools: list[Any] = []

    @property
    def is_empty(self) -> bool:
        return not self.messages

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if any(turn.images for turn in self.messages):
            raise Refused(400, f'"{self.model}" does not support images')

    def prompt_ids(self, model: LanguageModel, context: int) -> list[int]:
        if model.prompt_style is None:
            raise Refused(
                400,
                f'"{self.model}" does not support chat: it continues a text, ask /api/generate',
            )
        # The context less a quarter, or less a shorter answer.
        room = context - _most_tokens(self.options.num_predict, context // 4)
        return conversation_ids(
            [Message(turn.role, turn.content) for turn in self.messages],
            model.prompt_style,
            model.tokenizer,
            room if self.truncate else None,
        )


class Named(Body):
    """`/api/show`; `name` is the older word for `model`."""

    without_effect = frozenset({"verbose"})

    model: ModelName = ""
    name: ModelName = ""


def _most_tokens(wanted: int, limit: int) -> int:
    """Tokens of a response: below 0 is without end, which here ends at the server's limit."""
    return limit if wanted < 0 else min(wanted, limit)
