"""Real files in the mirror beside the repository, where there is one."""

from pathlib import Path

import pytest

MIRROR = Path(__file__).parents[3] / "shared" / "mirror"
MANIFESTS = Path(__file__).parents[2] / "profiles" / "manifests"
needs_mirror = pytest.mark.skipif(not MIRROR.is_dir(), reason="needs the mirror of real files")
