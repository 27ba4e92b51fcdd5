"""GPT-2 repositories at Hugging Face, at a commit that is known or gets recorded.

`huggingface_hub` does the work, with its cache (`HF_HOME`), resume, `HF_ENDPOINT`, `HF_TOKEN` and
offline mode (`HF_HUB_OFFLINE=1`). Only safetensors are asked for, never a pickle.
"""

import re
from pathlib import Path

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gptmill.data.fetch import offline_from_environment
from gptmill.errors import UserError
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
            no network and nothing in the cache, a file whose hash is not the one the hub tells.
    """
    revision = revision or PINNED.get(repository, "")
    if not revision:
        raise UserError(
            f"no commit of {repository} is pinned here (there are {', '.join(PINNED)}): set "
            "revision to one of its commits, or to a branch such as main, whose commit the "
            "model's provenance.json then records"
        )
    name = f"{repository} at revision {revision}"
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=PATTERNS,
            cache_dir=cache,
            local_files_only=offline_from_environment(),
        )
    except HFValidationError as error:
        raise UserError(
            f"'{repository}' is no repository's name, as OWNER/NAME is: {error}"
        ) from None
    except GatedRepoError:
        raise UserError(f"{name}: the hub wants you to log in and accept its terms") from None
    except RevisionNotFoundError:
        raise UserError(f"{repository} has no revision {revision} at the hub") from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no repository {repository}, or it is private") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(_unreachable(name, error)) from None
    except (HfHubHTTPError, EntryNotFoundError, httpx2.HTTPError, OSError) as error:
        raise UserError(f"{name} could not be downloaded: {error}") from None
    _verify(Path(folder), name)
    return Path(folder)


def _unreachable(name: str, error: Exception) -> str:
    files = ", ".join(PATTERNS[:-1])
    return (
        f"{name} is not in the cache, and the hub was not reached ({error}). Run once with the "
        "network, set HF_ENDPOINT to a mirror of the hub, or put what the repository has of "
        f"{files} into a folder and use source: folder"
    )


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
