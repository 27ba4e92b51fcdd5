"""`dvc plots show` without a network: DVC's own page loads Vega from elsewhere, ours holds it."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from gptmill.errors import UserError
from gptmill.files import atomic_file

# DVC's templates are written for Vega-Lite 5.
VEGA_LITE = "5.21"


def write_plots_template(root: Path) -> Path:
    """Write `.dvc/plots.html` with Vega in it and point this checkout's DVC to it; its path.

    The setting goes to `.dvc/config.local`, which is not committed: a checkout without the file
    draws as DVC does.

    Raises:
        UserError: `root` is no DVC project.
    """
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root.resolve()} holds no DVC project: run this in the project's root")
    import vl_convert

    page = files("gptmill.report").joinpath("plots.html").read_text(encoding="utf-8")
    page = page.replace("{vega}", vl_convert.javascript_bundle(vl_version=VEGA_LITE))
    path = root / ".dvc" / "plots.html"
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    # A relative path is relative to .dvc.
    command = [sys.executable, "-m", "dvc", "config", "--local", "plots.html_template", path.name]
    subprocess.run(command, cwd=root, check=True)
    return path
