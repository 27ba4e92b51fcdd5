"""What the commands share."""

import argparse
import os
from collections.abc import Callable


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


def all_threads() -> int:
    """As many threads as the machine has cores: a command has it to itself."""
    return os.cpu_count() or 1
