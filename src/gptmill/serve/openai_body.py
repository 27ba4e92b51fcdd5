"""What OpenAI's clients ask: the bodies of `/v1/chat/completions` and `/v1/completions`.

`top_k`, `min_p`, `repetition_penalty`, `min_tokens` and `ignore_eos` are taken too, under the names
that other local servers give them. What cannot be honored is refused by name.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

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
from gptmill.serve.request import Piece
from gptmill.serve.schema import ANY_OBJECT

MAX_BIASES = 1024
MAX_CHOICES = 64  # answers of one request: of each prompt n, or best_of
Prompt = TypeVar("Prompt")
Prompts = Annotated[list[Prompt], Field(min_length=1, max_length=MAX_CHOICES)]
Bias = Annotated[float, Field(ge=-100, le=100)]
COMPLETION_TOKENS = 16  # OpenAI's default of `/v1/completions`


class StreamOptions(Part):
    """`stream_options`."""

    without_effect = frozenset({"include_obfuscation"})

    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's: the usage so far, in every chunk


class Asked(Body, numbers("openai")):  # type: ignore[misc]
    """What both paths have in common."""

    without_effect = frozenset({
        "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "parallel_tool_calls", "tool_choice", "prediction", "verbosity",
    })  # fmt: skip
    unsupported: ClassVar = {
        "tools": ([],), "functions": ([],), "modalities": (["text"],),
        "suffix": ("",), "audio": None, "reasoning_effort": ("none",),
    }  # fmt: skip
    protocol: ClassVar = "openai"

    keep_alive: ClassVar = None

    model: ModelName
    stream: bool = False
    seed: int | None = None
    stop: Stops = []
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    logit_bias: Annotated[dict[int, Bias], Field(max_length=MAX_BIASES)] = {}
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False

    def adjustment(self, model: LanguageModel, *, constrained: bool) -> Adjustment | None:
        """What it does to logits; None for nothing.

        Raises:
            Refused: ids that the model has not, or an end forbidden that a schema may need.
        """
        if any(not 0 <= id < model.tokenizer.vocabulary_size for id in self.logit_bias):
            raise Refused(400, "logit_bias has token ids that this model has not")
        if constrained and (self.ignore_eos or self.min_tokens):
            raise Refused(
                400, "a response_format ends where its JSON does: no ignore_eos, min_tokens"
            )
        made = Adjustment(
            self.logit_bias,
            self.presence_penalty,
            self.frequency_penalty,
            (model.tokenizer.end_of_text, *model.stop_tokens),
            math.inf if self.ignore_eos else self.min_tokens,
        )
        changes = (made.bias, made.presence, made.frequency, made.min_tokens)
        return made if any(changes) else None

    def sampling(self, model: LanguageModel, most: int) -> SamplingOptions:
        """How a model's tokens are chosen, at most so many."""
        return sampling(
            self.protocol,
            self,
            max_new_tokens=most,
            stop_tokens=model.stop_tokens,
            stop_strings=stop_strings(self.stop),
            seed=self.seed,
        )

    def ask_chat(
        self,
        messages: list[Message],
        schema: dict[str, Any] | None,
        top: int | None,
        most: int,
        model: LanguageModel,
        field: str,
    ) -> Ask:
        """A conversation to be answered.

        Args:
            top: how many candidates of each token are scored; None scores none.
            most: tokens of the answer.
            field: where the conversation stands in the body.
        """
        if model.prompt_style is None:
            raise Refused(400, f"{self.model} was not trained to chat: ask /v1/completions")
        ids = conversation_ids(messages, model.prompt_style, model.tokenizer, None)
        ids = ids or [model.tokenizer.beginning_of_text]
        chosen = self.sampling(model, _room(ids, model, most, field))
        adjustment = self.adjustment(model, constrained=schema is not None)
        return Ask(ids, chosen, model.context_length, top, schema, adjustment=adjustment)


class SeveralChoices(Asked):
    """What `/v1/chat/completions` and `/v1/completions` have in common."""

    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)

    @property
    def tries(self) -> int:
        """Answers to each prompt that are computed."""
        return self.n


class ContentPart(Part):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Part):
    """A message; `developer` is the newer word for `system`."""

    unsupported: ClassVar = {
        "name": ("",), "refusal": ("",), "tool_calls": ([],), "tool_call_id": ("",),
        "annotations": ([],), "reasoning_content": ("",),
    }  # fmt: skip

    role: Literal["system", "developer", "user", "assistant"]
    content: list[ContentPart] = []

    @field_validator("content", mode="before", json_schema_input_type=str | list[ContentPart])
    @classmethod
    def _in_parts(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value

    def message(self) -> Message:
        content = "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, content)


class JsonSchema(Part):
    """A schema by name."""

    without_effect = frozenset({"description", "strict"})  # it is always kept strictly

    name: str = ""
    schema_: dict[str, Any] = Field(default=ANY_OBJECT, alias="schema")


class ResponseFormat(Part):
    """`response_format`. The schema of `json_object` stands beside it, where llama.cpp and others
    put it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _one_schema(self) -> "ResponseFormat":
        given = [value for value in (self.json_schema, self.schema_) if value is not None]
        if self.type == "text" and given:
            raise ValueError("a schema needs the type json_schema, not text")
        if self.type == "json_schema" and not given:
            raise ValueError("json_schema is missing: {'name': …, 'schema': …}")
        if len(given) > 1:
            raise ValueError("there are two schemas: schema and json_schema")
        return self

    def schema_wanted(self) -> dict[str, Any] | None:
        if self.type == "text":
            return None
        if self.json_schema is not None:
            return self.json_schema.schema_
        return ANY_OBJECT if self.schema_ is None else self.schema_


class Chat(SeveralChoices):
    """`/v1/chat/completions`."""

    unsupported: ClassVar = {**Asked.unsupported, "best_of": (1,), "echo": (False,)}

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    keeps_scores: ClassVar = True

    def asks(self, model: LanguageModel, limit: int) -> list[Ask]:
        """What it means to a model; `limit` is how many tokens the server allows."""
        messages = [message.message() for message in self.messages]
        schema = self.response_format.schema_wanted() if self.response_format else None
        top = self.top_logprobs if self.logprobs else None
        most = min(self.max_completion_tokens or self.max_tokens or limit, limit)
        ask = self.ask_chat(messages, schema, top, most, model, "messages")
        return [replace(ask, index=index) for index in range(self.n)]


class Completion(SeveralChoices):
    """`/v1/completions`, of a text or its token ids, or of several."""

    prompt: str | Prompts[str] | list[int] | Prompts[list[int]]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)

    @model_validator(mode="after")
    def _consistent(self) -> "Completion":
        if self.tries < self.n:
            raise ValueError(f"best_of is {self.best_of}, less than n, {self.n}")
        if self.stream and self.tries > self.n:
            raise ValueError("best_of cannot be streamed: the best is known at the end")
        if self.tries * len(self._prompts()) > MAX_CHOICES:
            raise ValueError(f"prompt: {MAX_CHOICES} answers a request at most, n and best_of too")
        return self

    @property
    def tries(self) -> int:
        return self.n if self.best_of is None else self.best_of

    @property
    def keeps_scores(self) -> bool:
        """Whether the client wants scores, or `best_of` alone."""
        return self.logprobs is not None

    def asks(self, model: LanguageModel, limit: int) -> list[Ask]:
        """What it means to a model; `limit` is how many tokens the server allows."""
        return [ask for prompt in self._prompts() for ask in self._of_one(prompt, model, limit)]

    def _prompts(self) -> Sequence[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        several = [part for part in self.prompt if not isinstance(part, int)]
        return several or [ids]

    def _of_one(self, prompt: str | list[int], model: LanguageModel, limit: int) -> list[Ask]:
        given = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if any(not 0 <= id < model.tokenizer.vocabulary_size for id in given):
            raise Refused(400, "prompt has token ids that this model has not")
        ids = given or [model.tokenizer.beginning_of_text]
        wanted = COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        most = _room(ids, model, min(wanted, limit), "prompt")
        ask = Ask(
            ids,
            self.sampling(model, max(1, most)),
            model.context_length,
            0 if self.tries > self.n and self.logprobs is None else self.logprobs,
            # Evaluators leave out the last of prompt and answer, whichever token it is.
            score_end=self.echo,
            adjustment=self.adjustment(model, constrained=False),
            opening=self._echoed(prompt, given, model) if self.echo else None,
            generates=most > 0,
        )
        return [replace(ask, index=index) for index in range(self.tries)]

    def _echoed(self, prompt: str | list[int], ids: list[int], model: LanguageModel) -> Piece:
        text = prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)
        wanted = self.logprobs is not None and ids
        return Piece(text, model.prompt_scores(ids, self.logprobs or 0) if wanted else [])


def _room(ids: list[int], model: LanguageModel, most: int, field: str) -> int:
    """How many tokens fit after a prompt, at most `most`: nothing of it slides out of the window.

    0 wanted needs no room.

    Raises:
        Refused: none does.
    """
    context = model.context_length
    if len(ids) >= context + (most == 0):
        raise Refused(
            400,
            f"This model's maximum context length is {context} tokens, of which an answer needs "
            f"one; your {field} resulted in {len(ids)} tokens.",
            "context_length_exceeded",
            field,
        )
    return min(most, context - len(ids))
