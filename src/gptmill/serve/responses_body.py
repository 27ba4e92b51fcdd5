"""What OpenAI's clients ask of `/v1/responses`: text from text.

Nothing is kept between requests: `store` does nothing, and a `previous_response_id` is refused.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from gptmill.serve.body import MAX_MESSAGES, Part
from gptmill.serve.language_model import Ask, LanguageModel
from gptmill.serve.openai_body import Asked
from gptmill.serve.prompts import Message
from gptmill.serve.schema import ANY_OBJECT


class InputText(Part):
    """A part of a message, of the client's or from an earlier response."""

    without_effect = frozenset({"annotations", "logprobs"})

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputMessage(Part):
    """A message; `developer` is the newer word for `system`."""

    without_effect = frozenset({"id", "status"})

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: list[InputText] = []

    @field_validator("content", mode="before", json_schema_input_type=str | list[InputText])
    @classmethod
    def _in_parts(cls, value: Any) -> Any:
        return [{"type": "input_text", "text": value}] if isinstance(value, str) else value

    def message(self) -> Message:
        content = "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, content)


class TextFormat(Part):
    """`text.format`."""

    without_effect = frozenset({"description", "strict"})  # it is always kept strictly

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class Text(Part):
    """`text`."""

    without_effect = frozenset({"verbosity"})

    format: TextFormat = TextFormat()

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        if self.format.type == "text":
            return None
        return ANY_OBJECT if self.format.schema_ is None else self.format.schema_

    def as_sent(self) -> dict[str, Any]:
        """The format as the response repeats it."""
        return self.format.model_dump(by_alias=True, exclude_unset=True) or {"type": "text"}


class Responses(Asked):
    """`/v1/responses`."""

    without_effect = Asked.without_effect | {"max_tool_calls", "stream_options"}
    unsupported: ClassVar = {
        **Asked.unsupported, "background": (False,), "truncation": ("disabled",),
        "previous_response_id": (), "conversation": (), "prompt": (), "reasoning": ({},),
    }  # fmt: skip
    protocol: ClassVar = "responses"
    n: ClassVar = 1
    tries: ClassVar = 1
    keeps_scores: ClassVar = True

    input: Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str = ""
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int = Field(0, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = []
    text: Text = Text()
    metadata: dict[str, str] = {}

    @field_validator("input", mode="before", json_schema_input_type=str | list[InputMessage])
    @classmethod
    def _as_messages(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    def asks(self, model: LanguageModel, limit: int) -> list[Ask]:
        """What it means to a model; `limit` is how many tokens the server allows."""
        messages = [message.message() for message in self.input]
        if self.instructions:
            messages.insert(0, Message("system", self.instructions))
        wants_scores = self.top_logprobs or "message.output_text.logprobs" in self.include
        top = self.top_logprobs if wants_scores else None
        most = min(self.max_output_tokens or limit, limit)
        return [self.ask_chat(messages, self.text.schema_wanted, top, most, model, "input")]
