"""The model that fine-tuning starts from, wherever its weights come from."""

from pathlib import Path
from typing import Any, NamedTuple

from gptmill.card import ModelCard
from gptmill.errors import UserError
from gptmill.files import sha256_tree, state_root
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2, set_dropout
from gptmill.params import Pretrain, Start
from gptmill.tokenizer import Tokenizer, load_tokenizer
from gptmill.weights.folder import load_language_model


class Foundation(NamedTuple):
    """A model to start from; `origin` says exactly which bytes it is, for the provenance.
    `stop_tokens` end its continuations; without any, the tokenizer's end of text does."""

    model: GPT2
    tokenizer: Tokenizer
    origin: dict[str, str]
    stop_tokens: list[int]


def read_foundation(source: str, location: str, revision: str, context_length: int) -> Foundation:
    """Read weights and tokenizer, every key accounted for.

    Args:
        source: `folder`, `huggingface` or `openai`.
        location: a folder; a repository such as `openai-community/gpt2`; for `openai` a size such
            as 124M, which is downloaded, or a checkpoint's folder.
        revision: the repository's commit, tag or branch; '' is the pinned commit.
        context_length: crop the position table to this many; 0 keeps it whole.

    Raises:
        UserError: the weights are not there, or not those of a GPT-2.
    """
    context = context_length or None
    folder = Path(location)
    # Each source needs its own libraries: imported where they are used.
    if source == "openai":
        from gptmill.weights.openai import download_openai, load_openai

        if not folder.is_dir():
            folder = download_openai(location, state_root() / "downloads" / "openai")
        return Foundation(*load_openai(folder, context), {"sha256": sha256_tree(folder)}, [])
    if source == "huggingface":
        from gptmill.weights.huggingface import download

        folder = download(location, revision)
        origin = {"repository": location, "commit": folder.name}
    else:
        origin = {"sha256": sha256_tree(folder)}
    model, tokenizer = load_language_model(folder, context), load_tokenizer(folder)
    return Foundation(model, tokenizer, origin, list(ModelCard.read(folder).stop_tokens))


def starting_model(section: Pretrain, tokenizer: Tokenizer) -> tuple[GPT2, dict[str, Any]]:
    """The model that pretraining starts from, random or a foundation, and its origin.

    A foundation keeps all its positions; `model.context_length` tokens at a time are trained on.

    Raises:
        UserError: as `read_foundation`, another tokenizer than the text was encoded with, or a
            window longer than the model's context.
    """
    start, window = section.foundation, section.model.context_length
    if start.source == "none":
        config = GPT2Config(tokenizer.vocabulary_size, **dict(section.model))
        return GPT2(config, section.initial_deviation, section.embedding_deviation), {}
    model, own, origin, _ = read_foundation(start.source, start.location, start.revision, 0)
    if type(own) is not type(tokenizer) or own.identity != tokenizer.identity:
        raise UserError(
            f"pretrain.foundation: {start.location} has another tokenizer than data/tokens: set "
            "tokenize.kind to foundation"
        )
    if window > model.config.context_length:
        raise UserError(
            f"pretrain.model.context_length: {window} tokens at a time, and {start.location} "
            f"knows {model.config.context_length} positions"
        )
    set_dropout(model, section.model.dropout)
    return model, {"foundation": origin}


def watched_folder(start: Start) -> dict[str, Path]:
    """The folder of a foundation by its name as an input, if it is one."""
    return {"foundation": Path(start.location)} if start.source == "folder" else {}
