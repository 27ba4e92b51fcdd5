"""What Ollama's clients ask: the bodies of `/api/chat` and `/api/generate`, and their meaning.

Defaults of sampling are Ollama's own, except that repeats are not penalised: models of this size
copy names and numbers on purpose.
"""

import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gptmill.prompt import format_prompt
from gptmill.serve.adjustment import Adjustment
from gptmill.serve.answering import seed_or_random
from gptmill.serve.body import MAX_MESSAGES, Body, ModelName, Part, Stops, sampling, stop_strings
from gptmill.serve.language_model import Ask, LanguageModel
from gptmill.serve.prompts import Message, conversation_ids
from gptmill.serve.refusal import Refused
from gptmill.serve.schema import ANY_OBJECT

MAXIMUM_TOP_LOGPROBS = 20
NAMES = {"max_new_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


class Options(Part):
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

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
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
    keep_alive: float | str | None = None
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

    @field_validator("keep_alive")
    @classmethod
    def _duration(cls, value: float | str | None) -> float | None:
        return value if value is None else seconds_of(value)

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """None for prose; an empty schema is any object, as at Ollama."""
        if self.format == "json":
            return ANY_OBJECT
        return None if self.format in (None, "") else self.format


class Generate(Asked):
    """`/api/generate`."""

    prompt: str = ""
    system: str = ""
    raw: bool = False
    context: list[int] = []
    suffix: str = ""
    template: str = ""
    images: list[Any] = []


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


class Named(Body):
    """`/api/show`; `name` is the older word for `model`."""

    without_effect = frozenset({"verbose"})

    model: ModelName = ""
    name: ModelName = ""


def seconds_of(value: float | str) -> float:
    """A duration as Go writes it ("5m", "-1s"), or seconds; below 0 is for ever."""
    if isinstance(value, str):
        sign, text = (-1, value[1:]) if value.startswith("-") else (1, value)
        parts = DURATION.findall(text)
        if "".join(number + unit for number, unit in parts) == text and parts:
            value = sign * sum(float(number) * UNITS[unit] for number, unit in parts)
        else:
            try:
                value = float(value)
            except ValueError:
                raise ValueError(f"{value[:40]!r} is no duration, as 300 or '5m'") from None
    if math.isnan(value):
        raise ValueError("NaN is no duration")
    return math.inf if value < 0 else value


def is_empty(body: Asked) -> bool:
    """Whether it only asks to load the model, or to unload it."""
    return not (body.messages if isinstance(body, Chat) else body.prompt or body.context)


def refuse_unsupported(body: Asked) -> None:
    """Say no to what would otherwise silently change nothing."""
    for name in ("suffix", "template", "images", "tools", "think"):
        if getattr(body, name, None):
            raise Refused(400, f'"{body.model}" does not support {name}')
    if any(turn.images for turn in getattr(body, "messages", [])):
        raise Refused(400, f'"{body.model}" does not support images')


def ask_of(body: Asked, model: LanguageModel, limit: int) -> Ask:
    """What a body means to a model.

    Args:
        limit: tokens of a response that the server allows.
    """
    options = body.options
    context = min(options.num_ctx or model.context_length, model.context_length)
    ids = (_chat_ids if isinstance(body, Chat) else _generate_ids)(body, model, context)
    ids = ids or [model.tokenizer.beginning_of_text]
    if len(ids) > context and not body.truncate:
        raise Refused(
            400,
            f"the input length exceeds the context length: it has {len(ids)} tokens, the context "
            f"{context}",
        )
    most = _most_tokens(options.num_predict, limit)
    # What a JSON text began with must be in sight to its end.
    unbounded_json = body.schema_wanted is not None and options.num_predict == -1
    if not body.shift or options.num_predict == -2 or unbounded_json:
        most = max(1, min(most, context - len(ids)))
    chosen = sampling(
        NAMES,
        max_new_tokens=most,
        temperature=options.temperature,
        top_k=max(0, options.top_k),
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.penalty,
        stop_tokens=model.stop_tokens,
        stop_strings=stop_strings(options.stop),
        seed=seed_or_random(options.seed),
    )
    top = body.top_logprobs if body.logprobs else None
    adjustment = None
    if options.presence_penalty or options.frequency_penalty:
        adjustment = Adjustment({}, options.presence_penalty, options.frequency_penalty)
    return Ask(ids, chosen, context, top, body.schema_wanted, body.end_logprob, adjustment)


def _most_tokens(wanted: int, limit: int) -> int:
    """Tokens of a response: below 0 is without end, which here ends at the server's limit."""
    return limit if wanted < 0 else min(wanted, limit)


def _chat_ids(body: Chat, model: LanguageModel, context: int) -> list[int]:
    if model.prompt_style is None:
        raise Refused(
            400, f'"{body.model}" does not support chat: it continues a text, ask /api/generate'
        )
    # The context less a quarter, or less a shorter answer.
    room = context - _most_tokens(body.options.num_predict, context // 4)
    return conversation_ids(
        [Message(turn.role, turn.content) for turn in body.messages],
        model.prompt_style,
        model.tokenizer,
        room if body.truncate else None,
    )


def _generate_ids(body: Generate, model: LanguageModel, context: int) -> list[int]:
    text = body.prompt
    if not body.raw:
        if model.prompt_style is not None:
            text = format_prompt({"instruction": text, "input": ""}, model.prompt_style)
        text = f"{body.system}\n\n{text}" if body.system else text
    if any(not 0 <= id < model.tokenizer.vocabulary_size for id in body.context):
        raise Refused(400, "context has ids that this model has not")
    return [*body.context, *model.tokenizer.encode(text)]
