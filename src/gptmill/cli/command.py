"""What the commands share."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

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


def all_threads() -> int:
    """As many threads as the machine has cores: a command has it to itself."""
    return os.cpu_count() or 1


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: no such file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start})") from None
