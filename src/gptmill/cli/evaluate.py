"""`gptmill evaluate`: how well a model does a task, told by its likelihoods."""

import argparse
from dataclasses import asdict
from pathlib import Path

from gptmill.cli.command import add_command
from gptmill.cli.infer import open_speaker
from gptmill.errors import UserError

FORMATS = (".png", ".svg", ".pdf")


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="Score a model on a task",
        description="Score a model on a task by the likelihoods it gives.",
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    add_fewshot(kinds)


def add_fewshot(kinds: argparse._SubParsersAction) -> None:
    parser = add_command(
        kinds,
        "fewshot",
        fewshot,
        "Accuracy against the number of examples in the prompt. The answer to a text is the label "
        "of the largest log-likelihood; each text is shown other lines of the task file.",
    )
    parser.add_argument("--model", type=Path, required=True, help="language-model folder")
    parser.add_argument(
        "--task", type=Path, required=True, help='JSON lines of {"text": …, "label": …}'
    )
    parser.add_argument(
        "--shots", type=int, nargs="+", default=[0, 1, 4, 16], help="numbers of examples"
    )
    parser.add_argument("--limit", type=int, help="label so many texts of the task (all)")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts computed together")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of examples")
    parser.add_argument(
        "--output", type=Path, help="plot to write (.png, .svg, .pdf), its figures beside as .json"
    )


def fewshot(options: argparse.Namespace) -> None:
    """Print a row for each number of examples; write the plot and its figures if asked."""
    from gptmill.generate.fewshot import evaluate, majority_accuracy, plot_accuracy, read_task

    _check(options)
    task = read_task(options.task)
    queries = task[: options.limit]
    speaker = open_speaker(options.model)
    shots = sorted(set(options.shots))
    results = evaluate(
        speaker.decoder, speaker.tokenizer, queries, task, shots, options.seed, options.batch_size
    )
    majority = majority_accuracy(queries)
    print(f"{'examples':>8}  {'shown':>6}  {'accuracy':>8}  standard error")
    for row in results:
        print(
            f"{row.examples:8}  {row.shown:6.1f}  {row.accuracy:8.3f}  {row.standard_error:14.3f}"
        )
    print(f"{len(queries)} texts; always the commonest label: {majority:.3f}")
    if options.output:
        _write(options, majority, [asdict(row) for row in results])
        plot_accuracy(results, majority, options.output)
        print(options.output)


def _check(options: argparse.Namespace) -> None:
    if min(options.shots) < 0:
        raise UserError(f"--shots {min(options.shots)}: a number of examples is at least 0")
    for name in ("limit", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if options.output and options.output.suffix not in FORMATS:
        raise UserError(f"--output {options.output}: a plot's name ends in {', '.join(FORMATS)}")


def _write(options: argparse.Namespace, majority: float, rows: list[dict]) -> None:
    from gptmill.files import sha256, write_json

    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        options.output.with_suffix(".json"),
        {
            "model": str(options.model),
            "task": str(options.task),
            "task_sha256": sha256(options.task),
            "seed": options.seed,
            "majority": majority,
            "results": rows,
        },
    )
