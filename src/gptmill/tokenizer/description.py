"""What a folder's files say of its tokens, by the rules of `transformers.AutoTokenizer` 5.

`tokenizer.json`, or `vocab.json` and `merges.txt`, hold the tokens; `tokenizer_config.json`,
`special_tokens_map.json` and `added_tokens.json` add to them. The class that the configuration
names decides too: `GPT2Tokenizer`, which is GPT-2's where none is named, takes tokens and merges
from `tokenizer.json` and puts GPT-2's own rules around them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.files import read_json
from gptmill.tokenizer.base import END_OF_TEXT

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("extra_special_tokens", "additional_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
GPT2_CLASS = "GPT2Tokenizer"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
OTHER_FORMATS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")


Token = dict[str, Any]  # `content` and flags, as `tokenizer.json` has them


@dataclass
class Description:
    """What a folder's files say of its tokens, before any library reads it.

    `fast` is `tokenizer.json` in effect; `added` are tokens to look for in a text, in the order of
    their ids; `roles` those with a meaning, such as `eos_token`; `extra` other special ones.
    """

    path: Path
    fast: dict[str, Any]
    config: dict[str, Any]
    added: list[Token] = field(default_factory=list)
    roles: dict[str, Token] = field(default_factory=dict)
    extra: list[Token] = field(default_factory=list)


def describe(folder: Path) -> Description:
    """Read a folder's tokenizer files.

    Raises:
        UserError: there are none, or one is damaged or in no shape that is known.
    """
    config = _optional(folder / "tokenizer_config.json")
    if "auto_map" in config:
        raise UserError(
            f"{folder / 'tokenizer_config.json'} names code to run (auto_map), which is not run: "
            "save the tokenizer as tokenizer.json alone"
        )
    name, path = _class_name(folder, config), folder / "tokenizer.json"
    if path.exists():
        fast = read_object(path)
        _check(fast, path)
    else:
        name, path = GPT2_CLASS, folder / "vocab.json"
        fast = {"model": _read_gpt2_model(folder), "added_tokens": []}
    written = fast.get("added_tokens", [])
    if name == GPT2_CLASS and _is_byte_level(fast):
        fast = _gpt2_rules(fast["model"], fast.get("post_processor"), config)
    description = Description(path, fast, config)
    _add_tokens(description, written, name)
    return description


def _class_name(folder: Path, config: dict[str, Any]) -> str:
    """The tokenizer's class for `transformers`; '' is the one that takes the file as it is."""
    name = config.get("tokenizer_class")
    if not name:
        model = _optional(folder / "config.json")
        name = model.get("tokenizer_class")
        if name is None:
            return GPT2_CLASS if model.get("model_type") == "gpt2" else ""
    if not isinstance(name, str):
        raise UserError(f"{folder}: tokenizer_class is {name!r}, not a name")
    return name.removesuffix("Fast")


def _check(fast: dict[str, Any], path: Path) -> None:
    model = fast.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise UserError(f"{path} has no model with a vocab: not a tokenizer that can be read")
    for key in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        if not isinstance(fast.get(key), dict | None):
            raise UserError(f"{path}: {key} is neither an object nor null")
    added = fast.get("added_tokens", [])
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        raise UserError(f"{path}: added_tokens is not a list of objects")


def _is_byte_level(fast: dict[str, Any]) -> bool:
    """Whether GPT-2's rules can stand around this model: byte pairs in its printable spelling."""
    parts = [fast.get("pre_tokenizer"), fast.get("decoder")]
    nested = [*parts, *(part.get("pretokenizers") for part in parts if part)]
    return is_byte_pairs(fast["model"]) and (not any(parts) or '"ByteLevel"' in json.dumps(nested))


def is_byte_pairs(model: dict[str, Any]) -> bool:
    """Models named no type before `tokenizers` 0.9."""
    return model.get("type") == "BPE" or ("type" not in model and "merges" in model)


def _gpt2_rules(
    model: dict[str, Any], post_processor: dict[str, Any] | None, config: dict[str, Any]
) -> dict[str, Any]:
    """A `tokenizer.json` with the tokens and merges of a model, and GPT-2's rules."""
    prefix = bool(config.get("add_prefix_space", False))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": prefix},
        "post_processor": post_processor,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": model["vocab"],
            "merges": model.get("merges", []),
        },
    }


def _read_gpt2_model(folder: Path) -> dict[str, Any]:
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    others = [name for name in OTHER_FORMATS if (folder / name).exists()]
    if others and not vocabulary.exists():
        raise UserError(
            f"{folder} has its tokenizer as {others[0]} and no tokenizer.json: write one with "
            "transformers, AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    return {
        "vocab": read_object(vocabulary),
        "merges": [list(pair) for pair in read_merges(merges)],
    }


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of a `merges.txt`, in order.

    Raises:
        UserError: there is no such file, or a line is not a pair.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # others' ends stand in tokens
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error}") from None
    pairs: list[tuple[str, str]] = []
    for line in lines:
        if line and not line.startswith("#version"):
            first, _, second = line.partition(" ")
            if line.count(" ") != 1:
                raise UserError(f"{path}: merge {len(pairs)} is {line!r}, not two tokens")
            pairs.append((first, second))
    return pairs


# --- Added and special tokens


def _add_tokens(description: Description, written: list[Any], name: str) -> None:
    """Fill in `added`, `roles` and `extra`; `written` are those of `tokenizer.json`."""
    config, path = dict(description.config), description.path.with_name("tokenizer_config.json")
    decoder = config.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        # What older versions wrote; their special tokens override the configuration's.
        config |= _optional(path.with_name("special_tokens_map.json"))
    roles = dict.fromkeys(ROLES[:3], END_OF_TEXT) if name == GPT2_CLASS else {}
    roles |= {role: config[role] for role in ROLES if role in config}
    roles |= {key: value for key, value in config.items() if key.endswith("_token")}
    description.roles = {
        role: _token(value, path) for role, value in roles.items() if isinstance(value, str | dict)
    }
    description.extra = [_token(value, path) for value in _extras(config, path)]
    if isinstance(decoder, dict):
        description.added = _by_id(decoder.items(), path)
    else:
        named = [*description.roles.values(), *description.extra]
        special = {token["content"] for token in named}
        older = _optional(path.with_name("added_tokens.json")).items()
        entries = [(id, _plain_token(content, content in special)) for content, id in older]
        entries += [(entry.get("id"), entry) for entry in written]
        description.added = _by_id(entries, description.path)


def _by_id(entries: Iterable[tuple[Any, Any]], path: Path) -> list[Token]:
    """Tokens in the order of their ids; of two with the same, the later."""
    found: dict[int, Token] = {}
    for id, entry in entries:
        try:
            found[int(id)] = _token(entry, path)
        except (TypeError, ValueError):
            raise UserError(f"{path}: {entry!r} has the id {id!r}, which is not a number") from None
    return [found[id] for id in sorted(found)]


def _plain_token(content: str, special: bool) -> Token:
    return {"content": content, "normalized": not special, "special": special}


def _token(value: Any, path: Path) -> Token:
    """A token from its characters, or from an object with them and flags."""
    entry = value if isinstance(value, dict) else {"content": value}
    content = entry.get("content")
    if not isinstance(content, str) or not content:
        raise UserError(f"{path}: a token is {value!r}, which has no characters")
    return {"content": content} | {flag: bool(entry[flag]) for flag in FLAGS if flag in entry}


def _extras(config: dict[str, Any], path: Path) -> list[Any]:
    for key in EXTRA:
        if found := config.get(key):
            if not isinstance(found, list | dict):
                raise UserError(f"{path}: {key} is neither a list nor an object")
            return list(found.values()) if isinstance(found, dict) else found
    return []


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is a `UserError` that names the file."""
    return read_json(path, dict)
