"""The model that fine-tuning starts from, wherever its weights come from."""

from pathlib import Path
from typing import NamedTuple

from gptmill.files import sha256_tree, state_root
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import Tokenizer, load_tokenizer
from gptmill.weights.folder import load_language_model


class Foundation(NamedTuple):
    """A model to start from; `origin` tells exactly which bytes it is, for the provenance."""

    model: GPT2
    tokenizer: Tokenizer
    origin: dict[str, str]


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
        return Foundation(*load_openai(folder, context), {"sha256": sha256_tree(folder)})
    if source == "huggingface":
        from gptmill.weights.huggingface import download

        folder = download(location, revision)
        origin = {"repository": location, "commit": folder.name}
    else:
        origin = {"sha256": sha256_tree(folder)}
    return Foundation(load_language_model(folder, context), load_tokenizer(folder), origin)
