"""`gptmill`: what a person does with the models and the pipeline, from a terminal.

Each command imports what it needs when it runs: `gptmill classify` never loads PyTorch.
"""

import argparse
import sys
from pathlib import Path

from gptmill.errors import UserError, hide_credentials_in_tracebacks
from gptmill.files import disk_error
from gptmill.process.interrupt import end_at_once, in_order
from gptmill.process.ranks import stop_restarts


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a `UserError`, and what the disk refuses, is one message and status 1; Ctrl-C is
    one line and status 130."""
    from gptmill.cli.command import run_launched

    hide_credentials_in_tracebacks()
    given = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(given)
    try:
        run_launched(options, given)
        with in_order(f"gptmill {options.run.__name__}"):
            options.run(options)
    except UserError as error:
        sys.exit(f"error: {error}" if stop_restarts() else 1)
    except BrokenPipeError:
        sys.stderr.close()  # `gptmill … | head` is no error
    except OSError as error:
        told = disk_error(error, Path(error.filename or "."))
        if told is None:
            raise
        sys.exit(f"error: {told}")


def build_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    from gptmill.cli import (
        data,
        evaluate,
        experiments,
        infer,
        measure,
        plan,
        project,
        serve,
        versions,
    )

    parser = argparse.ArgumentParser(
        prog="gptmill",
        description="Raw text to a served language model: use the models, steer the pipeline.",
        epilog="`make repro` runs the pipeline; `gptmill COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        infer.add_generate,
        infer.add_chat,
        infer.add_classify,
        serve.add_serve,
        measure.add_perplexity,
        measure.add_compare,
        evaluate.add_evaluate,
        experiments.add_seeds,
        experiments.add_sweep,
        experiments.add_tune,
        data.add_data,
        plan.add_plan,
        project.add_export,
        project.add_params,
        project.add_profile,
        versions.add_versions,
        project.add_doctor,
        project.add_track,
        project.add_plots,
    ):
        add(commands)
    return parser


# Run as a command, not imported by another program: Ctrl-C is answered from the first import on.
if Path(sys.argv[0]).stem in ("gptmill", "-m"):
    end_at_once("gptmill")
