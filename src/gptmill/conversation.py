"""An entry with its history as token ids: what came before, and which of it are answers.

What the model's chat template renders, and what a server's conversation is encoded to: system
messages first, each on lines of its own, each question a prompt in the model's style, each answer
followed by the end-of-text token.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gptmill.prompt import format_prompt
from gptmill.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """Ids up to an entry's answer, and where earlier answers stand in them, ends included."""

    ids: list[int]
    answers: tuple[tuple[int, int], ...] = ()


def prompt_ids(
    entries: Sequence[Mapping[str, Any]], style: str, tokenizer: Tokenizer
) -> list[Prompt]:
    """The prompt of each entry, its history before it."""
    last = tokenizer.encode_batch([format_prompt(entry, style) for entry in entries])
    return [
        _after_history(entry["history"], ids, style, tokenizer)
        if entry.get("history")
        else Prompt(ids)
        for entry, ids in zip(entries, last)
    ]


def _after_history(
    history: Sequence[Mapping[str, str]], last: list[int], style: str, tokenizer: Tokenizer
) -> Prompt:
    system = "".join(f"{turn['content']}\n\n" for turn in history if turn["role"] == "system")
    ids = tokenizer.encode(system) if system else []
    answers = []
    for turn in history:
        if turn["role"] == "user":
            ids += tokenizer.encode(
                format_prompt({"instruction": turn["content"], "input": ""}, style)
            )
        elif turn["role"] == "assistant":
            start = len(ids)
            ids += [*tokenizer.encode(turn["content"]), tokenizer.end_of_text]
            answers.append((start, len(ids)))
    return Prompt(ids + last, tuple(answers))
