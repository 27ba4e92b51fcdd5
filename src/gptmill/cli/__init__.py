"""`gptmill`: what a person does with the models and the pipeline, from a terminal.

Each command imports what it needs when it runs: `gptmill classify` never loads PyTorch.
"""

import argparse
import sys

from gptmill.cli import evaluate, experiments, infer, measure, project, serve
from gptmill.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a `UserError` is one message and status 1, Ctrl-C status 130."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # `gptmill … | head` is no error


def build_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
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
        project.add_export,
        project.add_params,
        project.add_profile,
        project.add_doctor,
        project.add_track,
        project.add_plots,
    ):
        add(commands)
    return parser
