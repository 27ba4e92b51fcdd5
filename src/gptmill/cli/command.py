"""What the commands share."""

import argparse
import os
import sys
from collections.abc import Callable

from gptmill.errors import UserError


def add_command(
    commands: argparse._SubParsersAction, name: str, run: Callable, description: str
) -> argparse.ArgumentParser:
    """A command that calls `run`; the first sentence of its description is its help."""
    parser = commands.add_parser(
        name,
        help=description.split(". ")[0].rstrip("."),
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_processes(parser: argparse.ArgumentParser) -> None:
    """`--processes`, by which `run_launched` starts the command."""
    parser.add_argument(
        "--processes", dest="launched", metavar="N", type=int, default=1,
        help="share the work among N processes; one for each GPU",
    )  # fmt: skip


def run_launched(options: argparse.Namespace, arguments: list[str]) -> None:
    """Run the command in several processes, and exit, where `add_processes` asks for them.

    In those processes, and for one process, do nothing.

    Raises:
        UserError: fewer than one process.
    """
    from gptmill.process.ranks import is_worker

    processes = getattr(options, "launched", 1)
    if processes < 1:
        raise UserError("--processes must be at least 1")
    if processes == 1 or is_worker():
        return
    from gptmill.process.launch import launch
    from gptmill.runtime_sections import Launch

    section = Launch(
        processes=processes, nodes=1, minimum_nodes=1, rendezvous="", strategy="ddp",
        cpu_offload=False, activation_checkpointing=False, restarts=0,
    )  # fmt: skip
    sys.exit(launch(section, "gptmill.cli", arguments))


def all_threads() -> int:
    """As many threads as the machine has cores: a command has it to itself."""
    return os.cpu_count() or 1
