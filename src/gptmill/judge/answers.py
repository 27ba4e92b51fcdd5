"""Answered entries, as the stage `respond` writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.files import read_json

Entry = dict[str, Any]


def check_answers(entries: Sequence[Entry]) -> None:
    """Every entry has its instruction, reference and answer.

    Raises:
        UserError: there are none, or one lacks a text.
    """
    if not entries:
        raise UserError("there are no answers to judge")
    for place, entry in enumerate(entries):
        for key in ("instruction", "output", "response"):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise UserError(f"answer {place} has no text '{key}': the stage respond writes it")


def read_answers(path: Path) -> list[Entry]:
    """Answered entries: the file, or `responses.json` in a folder as the stage `respond` writes it.

    Raises:
        UserError: there is no such file, or its entries are not whole.
    """
    file = path / "responses.json" if path.is_dir() else path
    entries = read_json(file, list)
    check_answers(entries)
    return entries


def same_entries(
    entries: Sequence[Mapping[str, Any]], others: Sequence[Entry], origin: Path
) -> list[Entry]:
    """The others in the order of `entries`, matched by instruction and input.

    Raises:
        UserError: `origin` answers other entries.
    """
    found = {_question(other): other for other in others}
    missing = [entry for entry in entries if _question(entry) not in found]
    if missing:
        raise UserError(
            f"{origin} answers other entries: {len(missing)} of {len(entries)} are not there, for "
            f"example {missing[0]['instruction']!r}. Answer the same test split with both models"
        )
    return [found[_question(entry)] for entry in entries]


def _question(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["instruction"], entry.get("input", "")
