"""GPT-2 repositories at Hugging Face, at a commit that is known or gets recorded.

`huggingface_hub` does the work, with its cache (`HF_HOME`), resume, `HF_ENDPOINT`, `HF_TOKEN` and
offline mode (`HF_HUB_OFFLINE=1`). Only safetensors are asked for, never a pickle.
"""

import re
from pathlib import Path

from gptmill.errors import UserError
from gptmill.fetch.hub import snapshot
from gptmill.files import sha256
from gptmill.weights.safetensors import INDEX, SINGLE

# The commits that a repository's name alone means. Each is the last of its repository's main, as
# many projects recorded it, and holds `model.safetensors`.
PINNED = {
    "openai-community/gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "openai-community/gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "openai-community/gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "openai-community/gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
    "distilbert/distilgpt2": "2290a62682d06624634c1f46a6ad5be0f47f38aa",
}
# The weights' names in full: repositories also hold TensorFlow's, ONNX's and Rust's.
PATTERNS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    SINGLE,
    INDEX,
    "model-*-of-*.safetensors",
]


def download(repository: str, revision: str = "", cache: Path | None = None) -> Path:
    """The repository's folder at a commit, which is the folder's name.

    Args:
        repository: such as `openai-community/gpt2`.
        revision: a commit, tag or branch; '' is the pinned commit.
        cache: instead of `huggingface_hub`'s own.

    Raises:
        UserError: no such repository or revision, no revision given and none pinned, no access,
            no network and nothing in the cache, a file whose hash is not the hub's.
    """
    revision = revision or PINNED.get(repository, "")
    if not revision:
        raise UserError(
            f"no commit of {repository} is pinned here (there are {', '.join(PINNED)}): set "
            "revision to one of its commits, or to a branch such as main, whose commit the "
            "model's provenance.json then records"
        )
    name = f"{repository} at revision {revision}"
    folder = snapshot(repository, revision, PATTERNS, "model", cache)
    _verify(folder, name)
    return folder


def _verify(folder: Path, name: str) -> None:
    """The cache names a large file after the SHA-256 that the hub gave for it."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{name} has no safetensors, and a pickle is not loaded: it could run code")
    for path in weights:
        blob = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256(blob) != blob.name:
            blob.unlink()
            path.unlink()
            raise UserError(
                f"{name}: {path.name} has the wrong SHA-256, not {blob.name[:12]}…; it was removed "
                "from the cache: run again to download it once more"
            )
