"""Repositories at Hugging Face, models and data sets, at a commit.

`huggingface_hub` does the work, with its cache (`HF_HOME`), resume, `HF_ENDPOINT`, `HF_TOKEN` and
offline mode (`HF_HUB_OFFLINE=1`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

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

from gptmill.errors import UserError
from gptmill.fetch.environment import offline_from_environment


def snapshot(
    repository: str,
    revision: str,
    patterns: Sequence[str],
    kind: Literal["model", "dataset"],
    cache: Path | None = None,
) -> Path:
    """The folder with those of a repository's files that match, at a revision.

    Raises:
        UserError: no such repository or revision, no access, no network and nothing in the cache.
    """
    name = f"{repository} at revision {revision}"
    try:
        return Path(
            snapshot_download(
                repository,
                repo_type=kind,
                revision=revision,
                allow_patterns=list(patterns),
                cache_dir=cache,
                local_files_only=offline_from_environment(),
            )
        )
    except HFValidationError as error:
        raise UserError(
            f"'{repository}' is not a repository's name (OWNER/NAME): {error}"
        ) from None
    except GatedRepoError:
        raise UserError(f"{name}: the hub wants you to log in and accept its terms") from None
    except RevisionNotFoundError:
        raise UserError(f"{repository} has no revision {revision} at the hub") from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no repository {repository}, or it is private") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(_unreachable(name, patterns, error)) from None
    except (HfHubHTTPError, EntryNotFoundError, httpx2.HTTPError, OSError) as error:
        raise UserError(f"{name} could not be downloaded: {error}") from None


def _unreachable(name: str, patterns: Sequence[str], error: Exception) -> str:
    files = ", ".join(patterns)
    return (
        f"{name} is not in the cache, and the hub was not reached ({error}). Run once with the "
        "network, set HF_ENDPOINT to a mirror of the hub, or put what the repository has of "
        f"{files} into a folder and use that as the source"
    )
