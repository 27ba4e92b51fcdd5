"""Messages to token ids, within a context."""

from collections.abc import Sequence
from typing import NamedTuple

from gptmill.prompt import format_prompt
from gptmill.tokenizer import Tokenizer


class Message(NamedTuple):
    """One turn; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


def conversation_ids(
    messages: Sequence[Message], style: str, tokenizer: Tokenizer, room: int
) -> list[int]:
    """The ids of a conversation, to be continued by the model's answer.

    They are what the model's chat template renders: each user's message is a prompt in its style,
    each answer ends with the end-of-text token, system messages stand before all. The oldest turns
    go until the rest is `room` tokens or fewer, an answer with its question; the last message
    stays. Where that is an answer, it is continued.
    """
    system = tokenizer.encode("".join(f"{m.content}\n\n" for m in messages if m.role == "system"))
    messages = [message for message in messages if message.role != "system"]
    turns = [_turn(message, style, tokenizer) for message in messages]
    if turns and messages[-1].role == "assistant":
        turns[-1].pop()
    room -= len(system)
    first = 0
    while first < len(turns) - 1 and (
        sum(map(len, turns[first:])) > room or (first and messages[first].role == "assistant")
    ):
        first += 1
    return [*system, *(id for turn in turns[first:] for id in turn)]


def _turn(message: Message, style: str, tokenizer: Tokenizer) -> list[int]:
    if message.role == "assistant":
        return [*tokenizer.encode(message.content), tokenizer.end_of_text]
    return tokenizer.encode(format_prompt({"instruction": message.content, "input": ""}, style))
