"""`gptmill data check`: the data as the model will see them, before anything runs."""

import argparse
import sys
from pathlib import Path

from gptmill.cli.command import add_command

DATASETS = ("corpus", "classification", "instructions")


def add_data(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "data", check, "Look at the data that params.yaml names.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    action = add_command(
        actions,
        "check",
        check,
        "Read the data sets as the stages will, and show files, splits, labels, lengths, what is "
        "cut or left out, and the first rows. What training costs is `gptmill plan`'s.",
    )
    action.add_argument("datasets", nargs="*", metavar="DATASET", help=f"of {', '.join(DATASETS)}")
    action.add_argument("--profile", help="check profiles/NAME.yaml, params.yaml left as it is")
    action.add_argument("--page", type=Path, default=Path("report/data.html"), help="written too")


def check(options: argparse.Namespace) -> None:
    """Print each data set's part, and write the page."""
    from tempfile import TemporaryDirectory

    from gptmill.check import as_page, as_text
    from gptmill.check import check as read
    from gptmill.errors import UserError
    from gptmill.files import atomic_file
    from gptmill.params import load
    from gptmill.profiles import profile_parameters

    unknown = set(options.datasets) - set(DATASETS)
    if unknown:
        raise UserError(
            f"no data set {', '.join(sorted(unknown))}; there are {', '.join(DATASETS)}"
        )
    parameters = profile_parameters(options.profile) if options.profile else load()
    parts = []
    with TemporaryDirectory() as folder:
        for part in read(parameters, options.datasets or DATASETS, Path(folder)):
            print(as_text(part, sys.stdout.isatty()))
            parts.append(part)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(options.page) as beside:
        beside.write_text(as_page(parts), encoding="utf-8", newline="\n")
    print(f"{options.page}: the same as a page")
