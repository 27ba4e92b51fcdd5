"""What the environment says about the network."""

import os


def mirror_from_environment() -> str | None:
    """`GPTMILL_MIRROR`: a folder or an http(s) address, laid out HOST/PATH."""
    return os.environ.get("GPTMILL_MIRROR") or None


def offline_from_environment() -> bool:
    """Whether `GPTMILL_OFFLINE` forbids all use of the network (1, true or yes)."""
    return os.environ.get("GPTMILL_OFFLINE", "").lower() in {"1", "true", "yes"}
