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
    messages: Sequence[Message], style: str, tokenizer: Tokenizer, room: int | None
) -> list[int]:
    """The ids of a conversation, to be continued by the model's answer.

    They are what the model's chat template renders: each user's message is a prompt in its style,
    each answer ends with the end-of-text token, system messages stand before all. Where the last
    message is an answer, it is continued. With `room`, the oldest turns go until the rest is
    `room` tokens or fewer, an answer with its question; the last question stays, with what stands
    after it.
    """
    system = tokenizer.encode("".join(f"{m.content}\n\n" for m in messages if m.role == "system"))
    messages = [message for message in messages if message.role != "system"]
    turns = [_turn(message, style, tokenizer) for message in messages]
    if turns and messages[-1].role == "assistant":
        turns[-1].pop()
    first = 0 if room is None else _first_kept(messages, turns, room - len(system))
    return [*system, *(id for turn in turns[first:] for id in turn)]


def _first_kept(messages: Sequence[Message], turns: Sequence[list[int]], room: int) -> int:
    """The first turn that stays: the earliest question from which all fits, or else the last."""
    starts = {0, *(at for at, message in enumerate(messages) if message.role == "user")}
    length, first = sum(map(len, turns)), 0
    for at, turn in enumerate(turns):
        if at in starts:
            first = at
            if length <= room:
                break
        length -= len(turn)
    return first


def _turn(message: Message, style: str, tokenizer: Tokenizer) -> list[int]:
    if message.role == "assistant":
        return [*tokenizer.encode(message.content), tokenizer.end_of_text]
    return tokenizer.encode(format_prompt({"instruction": message.content, "input": ""}, style))
