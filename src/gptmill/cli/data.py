"""`gptmill data check`: the data as the model will see them, and what training will cost."""

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
        "cut or left out, the first rows, and what training will cost. The report shows it too.",
    )
    action.add_argument("datasets", nargs="*", metavar="DATASET", help=f"of {', '.join(DATASETS)}")
    action.add_argument("--profile", help="check profiles/NAME.yaml, params.yaml left as it is")
    action.add_argument(
        "--no-cost", action="store_true", help="do not measure what training costs (half a minute)"
    )
    action.add_argument("--page", type=Path, default=Path("report/data.html"), help="written too")


def check(options: argparse.Namespace) -> None:
    """Print each data set's part and the cost, and write the page."""
    from tempfile import TemporaryDirectory

    from gptmill.check import as_json, as_text, cost
    from gptmill.check import check as read
    from gptmill.errors import UserError
    from gptmill.params import load
    from gptmill.profiles import profile_parameters
    from gptmill.report.data import write_page

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
    if not options.no_cost:
        print("measuring this machine …", file=sys.stderr)
        parts.append(cost(parameters))
        print(as_text(parts[-1], sys.stdout.isatty()))
    write_page(as_json(parts, parameters), options.page)
    print(f"{options.page}: the same as a page")
