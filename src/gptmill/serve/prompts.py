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

    Each user's message is a prompt in the model's style, each answer follows its prompt and ends
    with a line break, system messages stand before all. The oldest turns go until the rest is
    `room` tokens or fewer; the last message stays. Where that is an answer, it is continued.
    """
    system = "".join(f"{m.content}\n\n" for m in messages if m.role == "system")
    turns = [_turn(message, style) for message in messages if message.role != "system"]
    if turns and messages[-1].role == "assistant":
        turns[-1] = turns[-1].removesuffix("\n")
    room -= len(tokenizer.encode(system))
    lengths = [len(ids) for ids in tokenizer.encode_batch(turns)]
    first = 0
    while sum(lengths[first:]) > room and first < len(turns) - 1:
        first += 1
    return tokenizer.encode(system + "".join(turns[first:]))


def _turn(message: Message, style: str) -> str:
    if message.role == "assistant":
        return f"{message.content}\n"
    return format_prompt({"instruction": message.content, "input": ""}, style)
