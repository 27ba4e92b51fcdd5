"""The tokenizer of a folder, whoever wrote it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.tokenizer.base import END_OF_TEXT, UNKNOWN, Tokenizer
from gptmill.tokenizer.byte_pairs import BytePairTokenizer, byte_pairs_from_files
from gptmill.tokenizer.description import (
    Description,
    describe,
    is_byte_pairs,
    read_merges,
    read_object,
)
from gptmill.tokenizer.library import LibraryTokenizer, open_library
from gptmill.tokenizer.vocabulary import vocabulary_from_json


def load_tokenizer(folder: Path) -> Tokenizer:
    """Open the tokenizer of a model folder: ours, or anybody's in Hugging Face's layout.

    Raises:
        UserError: no tokenizer files, files that are damaged, in no shape that is known, or
            without an end of text.
    """
    description = describe(folder)
    return (
        _own_vocabulary(description)
        or _gpt2_byte_pairs(description)
        or _library_tokenizer(description, folder)
    )


def load_gpt2_files(vocabulary_path: Path, merges_path: Path) -> BytePairTokenizer:
    """GPT-2's own files: `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt`."""
    vocabulary, merges = read_object(vocabulary_path), read_merges(merges_path)
    tokenizer = byte_pairs_from_files(vocabulary, merges)
    if tokenizer is None:
        raise UserError(
            f"{vocabulary_path}: its ids do not follow its merges as GPT-2's do "
            f"({len(vocabulary)} entries, {len(merges)} merges): not a GPT-2 tokenizer"
        )
    return tokenizer


def load_stop_tokens(folder: Path, config: Mapping[str, Any] | None = None) -> list[int]:
    """Ids that end a continuation: those of `generation_config.json`, or, if it names none, of
    `config.json`, whose content a caller that has read it gives.

    Raises:
        UserError: the value is not an id.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if name == "config.json" and config is not None:
            stops = config.get("eos_token_id")
        else:
            stops = read_object(path).get("eos_token_id") if path.exists() else None
        if stops is None:
            continue
        stops = stops if isinstance(stops, list) else [stops]
        if not all(type(stop) is int and stop >= 0 for stop in stops):
            raise UserError(f"{path}: eos_token_id is {stops}, not ids of tokens")
        return stops
    return []


def _own_vocabulary(description: Description) -> Tokenizer | None:
    """One that we wrote, if nothing was added to it since."""
    if _contents(description) <= {END_OF_TEXT, UNKNOWN}:
        return vocabulary_from_json(description.fast)
    return None


def _gpt2_byte_pairs(description: Description) -> Tokenizer | None:
    """GPT-2's kind by tiktoken, if nothing is said that it does not do."""
    fast, model = description.fast, description.fast["model"]
    pre_tokenizer = {"use_regex": True} | (fast.get("pre_tokenizer") or {})
    pre_tokenizer.pop("trim_offsets", None)
    vocabulary, merges = model["vocab"], _pairs(model.get("merges"))
    if (
        not is_byte_pairs(model)
        or not isinstance(vocabulary, dict)
        or merges is None
        or _contents(description) != {END_OF_TEXT}
        or fast.get("normalizer") is not None
        or pre_tokenizer != {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        or (fast.get("decoder") or {}).get("type") != "ByteLevel"
        or any(model.get(key) for key in ("dropout", "ignore_merges"))
        or any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
    ):
        return None
    return byte_pairs_from_files({END_OF_TEXT: len(vocabulary)} | vocabulary, merges)


def _pairs(merges: Any) -> list[tuple[str, str]] | None:
    """Merges in either of their spellings, `"a b"` or `["a", "b"]`; None if they are no such."""
    if not isinstance(merges, list):
        return None
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else m for m in merges]
    whole = all(
        isinstance(pair, tuple | list) and list(map(type, pair)) == [str, str] for pair in pairs
    )
    return [tuple(pair) for pair in pairs] if whole else None


def _contents(description: Description) -> set[str]:
    """The characters of every token that is added or special."""
    tokens = [*description.added, *description.roles.values(), *description.extra]
    return {token["content"] for token in tokens}


def _library_tokenizer(description: Description, folder: Path) -> LibraryTokenizer:
    origin = str(description.path)
    model = description.fast["model"] | {"dropout": None}  # the same text, the same ids
    _check_prefix(model, origin)
    fast = open_library(json.dumps(description.fast | {"model": model}), origin)
    _add_tokens(fast, description)
    ids = fast.get_vocab(with_added_tokens=True).values()
    if not ids or len(set(ids)) < len(ids):
        raise UserError(f"{origin} has {'two tokens with the same id' if ids else 'no tokens'}")
    end = _end_of_text(fast, description, folder)
    return LibraryTokenizer(fast, _saved_config(description, fast, end), end, origin)


def _check_prefix(model: dict[str, Any], origin: str) -> None:
    """The library cuts the prefix off every merge's second part, and aborts where there is none."""
    prefix, pairs = model.get("continuing_subword_prefix"), _pairs(model.get("merges"))
    for _, right in (prefix and pairs) or []:
        if not isinstance(prefix, str) or not right.startswith(prefix):
            raise UserError(f"{origin}: the merges do not have its prefix {prefix!r}, as {right!r}")


def _add_tokens(fast: Any, description: Description) -> None:
    """Give the library the tokens to look for; new ones get the next ids, in this order."""
    from tokenizers import AddedToken

    known = {token.content for token in fast.get_added_tokens_decoder().values()}
    wanted = list(description.added)
    known |= {token["content"] for token in wanted}
    for token in [*description.roles.values(), *description.extra]:
        if token["content"] not in known:
            wanted.append(token | {"special": True})
            known.add(token["content"])
    special = {token["content"] for token in description.roles.values()}
    for token in wanted:
        flags = {"special": True} if token["content"] in special else {}
        fast.add_tokens([AddedToken(**(token | flags))])


def _end_of_text(fast: Any, description: Description, folder: Path) -> int:
    """The token that the configuration names, or the model's first stop token, or the one that is
    called so."""
    if "eos_token" in description.roles:
        return fast.token_to_id(description.roles["eos_token"]["content"])
    known = set(fast.get_vocab(with_added_tokens=True).values())
    if stops := [stop for stop in load_stop_tokens(folder) if stop in known]:
        return stops[0]
    for content in (END_OF_TEXT, "</s>"):
        if (found := fast.token_to_id(content)) is not None:
            return found
    raise UserError(
        f"{folder} names no token that ends a text: set eos_token in tokenizer_config.json"
    )


def _saved_config(description: Description, fast: Any, end: int) -> dict[str, Any]:
    """`tokenizer_config.json` for what is saved: the class that takes `tokenizer.json` as it is."""
    config = description.config
    byte_pairs = is_byte_pairs(description.fast["model"])
    forced = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    pre_tokenizer = json.loads(fast.to_str())["pre_tokenizer"] or {}
    saved = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "add_prefix_space": pre_tokenizer.get("add_prefix_space", False),
        **{role: token["content"] for role, token in description.roles.items()},
        "eos_token": fast.id_to_token(end),
        "clean_up_tokenization_spaces": bool(config.get("clean_up_tokenization_spaces"))
        and (not byte_pairs or bool(forced)),
    }
    if byte_pairs and saved["clean_up_tokenization_spaces"]:
        saved["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"] = True
    if description.extra:
        saved["extra_special_tokens"] = [token["content"] for token in description.extra]
    if config.get("split_special_tokens"):
        saved["split_special_tokens"] = True
    if template := _chat_template(description):
        saved["chat_template"] = template
    return saved


def _chat_template(description: Description) -> Any:
    path = description.path.with_name("chat_template.jinja")
    return (
        path.read_text(encoding="utf-8")
        if path.exists()
        else description.config.get("chat_template")
    )
