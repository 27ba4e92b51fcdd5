"""Anybody's instructions and conversations as entries: instruction, input, output, and history.

`history` holds the turns before the last question, system prompts among them:
`[{"role": "user", "content": …}, …]`. Alpaca, prompt and completion, OpenAI's `messages` and
ShareGPT's `conversations` are read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptmill.data.own_files import LeftOut, named_splits
from gptmill.data.tables import SUFFIXES, read_rows, row_splits
from gptmill.data.text_files import whole_characters
from gptmill.errors import UserError
from gptmill.files import write_json

TAKEN = SUFFIXES
INSTRUCTION = ("instruction", "prompt", "question", "query")
INPUT = ("input", "context")
OUTPUT = ("output", "completion", "response", "answer", "chosen")
TURNS = ("messages", "conversations", "conversation", "dialog")
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant",
}  # fmt: skip
SURROGATES = "entry with half a surrogate pair, now U+FFFD"
NOT_READ = "entry of no layout that is known"

Entry = dict[str, Any]


def write_own_instructions(
    files: Sequence[Path], path: Path, *, encoding: str, left_out: LeftOut
) -> None:
    """Write the entries of all files, with `split` where files are named for it.

    Raises:
        UserError: a file that cannot be read, or no entry at all.
    """
    splits = named_splits(files)
    entries = []
    for file in files:
        values = read_rows(file, encoding)
        rows = [value if isinstance(value, dict) else {} for value in values]
        for value, split in zip(values, row_splits(file, rows)):
            split = splits.get(file, split)
            try:
                entry = read_entry(value, left_out)
            except RecursionError:  # nested deeper than the stack
                entry = None
                left_out.records[NOT_READ] += 1
            if entry is not None:
                entries.append(entry | ({"split": split} if split else {}))
    if not entries:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in left_out.records.items())
        raise UserError(
            f"{', '.join(map(str, files[:5]))}: no instruction entry ({reasons}); known are "
            "instruction, input, output; prompt and completion; messages; conversations"
        )
    write_json(path, entries)


def read_entry(value: Any, left_out: LeftOut) -> Entry | None:
    """One entry of any layout, or None with the reason counted.

    Rules: null is empty, numbers are text; what has no question or no answer is left out; an
    answer before the first question and a question after the last answer are left out of their
    conversation; turns of one role in a row are joined by an empty line.
    """
    if isinstance(value, list):  # of turns alone
        value = {TURNS[0]: value}
    if not isinstance(value, dict):
        left_out.records[NOT_READ] += 1
        return None
    turns = next(filter(None, (_listed(value.get(key)) for key in TURNS)), None)
    prompt, answer = value.get("prompt"), _as_turns(value, OUTPUT)
    if turns is None and isinstance(prompt, list):  # messages and the answer's, as preferences are
        turns = [*prompt, *answer]
    elif turns is None and len(answer) > 1:  # the whole conversation under its answer's name
        turns = answer
    entry, reason = _conversation(turns) if turns is not None else _single(value)
    if entry is None:
        left_out.records[reason] += 1
        return None
    clean = whole_characters(entry)
    left_out.records[SURROGATES] += clean != entry
    return clean


def _listed(value: Any) -> list[Any] | None:
    """A list, also where a table's cell has it as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _as_turns(value: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    answer = next((value[name] for name in names if value.get(name)), None)
    if isinstance(answer, list):
        return answer
    return [{"role": "assistant", "content": answer}]


def _single(value: Mapping[str, Any]) -> tuple[Entry | None, str]:
    """Instruction, input and output under any of their names."""
    found = []
    for names in (INSTRUCTION, INPUT, OUTPUT):
        key = next((k for k in value if isinstance(k, str) and k.strip().lower() in names), None)
        found.append(_text(value[key]) if key is not None else None)
    instruction, input, output = found
    if (instruction is None and input is None) or output is None:
        return None, NOT_READ
    if not (instruction or "").strip():  # the question alone, under `input`
        instruction, input = input, ""
    if not (instruction or "").strip():
        return None, "entry without a question"
    if not output.strip():
        return None, "entry without an answer"
    entry: Entry = {"instruction": instruction, "input": input or "", "output": output}
    system = _text(value.get("system") or "")
    history = [{"role": "system", "content": system}] if system.strip() else []
    for pair in value.get("history") or ():  # of question and answer
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_text, pair))):
            return None, "entry whose history is no pairs of question and answer"
        history += [
            {"role": role, "content": _text(part)}
            for role, part in zip(("user", "assistant"), pair)
        ]
    if history:
        entry["history"] = history
    # What the embedded entries and ours carry on: they are held out by combination.
    entry |= {key: value[key] for key in ("family", "combination") if key in value}
    return entry, ""


def _conversation(turns: Sequence[Any]) -> tuple[Entry | None, str]:
    """The last question and its answer, with all turns before them as history."""
    said: list[dict[str, str]] = []
    for turn in turns:
        if not isinstance(turn, dict):
            return None, NOT_READ
        role = ROLES.get(str(turn.get("role") or turn.get("from")).lower())
        content = _text(turn.get("content", turn.get("value")))
        if role is None:
            return None, "conversation with a role other than system, user and assistant"
        if not content.strip():
            if role == "system":
                continue
            return None, "conversation with an empty turn"
        if said and said[-1]["role"] == role:
            said[-1]["content"] += f"\n\n{content}"
        else:
            said.append({"role": role, "content": content})
    system = [turn for turn in said if turn["role"] == "system"]
    spoken = [turn for turn in said if turn["role"] != "system"]
    while spoken and spoken[0]["role"] == "assistant":
        spoken.pop(0)
    while spoken and spoken[-1]["role"] == "user":
        spoken.pop()
    if not spoken:
        return None, "conversation without a question and its answer"
    *history, question, answer = [*system, *spoken]
    entry: Entry = {
        "instruction": question["content"],
        "input": "",
        "output": answer["content"],
    }
    return (entry | {"history": history} if history else entry), ""


def _text(value: Any) -> str:
    """Text of a value: null is empty, parts of a message are joined."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(
            _text(part.get("text") if isinstance(part, dict) else part) for part in value
        )
    return value if isinstance(value, str) else str(value)
