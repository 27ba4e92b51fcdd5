"""`gptmill evaluate`: how well a model does a task, by its likelihoods."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from gptmill.cli.command import add_command, add_processes, all_threads
from gptmill.cli.infer import open_text_generator
from gptmill.errors import UserError
from gptmill.process.ranks import is_first, is_worker

FORMATS = (".png", ".svg", ".pdf")


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="Score a model on a task",
        description="Score a model by the likelihoods it gives, or answers by a judge's choice.",
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    add_fewshot(kinds)
    add_pairwise(kinds)
    add_lm_eval(kinds)


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
    add_processes(parser)


def fewshot(options: argparse.Namespace) -> None:
    """Print a row for each number of examples; write the plot and its figures if asked."""
    from gptmill.evaluate.fewshot import evaluate, majority_accuracy, plot_accuracy, read_task

    _check(options)
    task = read_task(options.task)
    queries = task[: options.limit]
    speaker = open_text_generator(options.model)
    shots = sorted(set(options.shots))
    results = evaluate(
        speaker.decoder, speaker.tokenizer, queries, task, shots, options.seed, options.batch_size,
        each=_shared(),
    )  # fmt: skip
    if not is_first():
        return
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


def _shared() -> Callable[..., Iterable[Any]]:
    """`map`, or in several processes one that shares its calls among them."""
    if not is_worker():
        return map
    from gptmill.engine.runtime import open_runtime
    from gptmill.engine.workers import ALONE

    runtime = open_runtime(seed=0, threads=all_threads(), precision="float32")
    return partial(runtime.map, ALONE)


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


def add_pairwise(kinds: argparse._SubParsersAction) -> None:
    parser = add_command(
        kinds,
        "pairwise",
        pairwise,
        "Which answers does the judge of params.yaml prefer? Each pair is shown in both orders.",
    )
    parser.add_argument("first", type=Path, help="answers, such as data/responses")
    parser.add_argument(
        "second", type=Path, nargs="?", help="other answers to the same entries (the references)"
    )
    parser.add_argument("--output", type=Path, help="JSON file for metrics and pairs")


def pairwise(options: argparse.Namespace) -> None:
    """Print win rate, interval and biases; write them with every pair if asked."""
    from gptmill.files import state_root, write_json
    from gptmill.judge.answers import read_answers, same_entries
    from gptmill.judge.pairwise import compare
    from gptmill.params import load

    section = load().judge
    if section.backend == "reference":
        raise UserError("judge.backend is 'reference', which compares nothing: name a server")
    entries = read_answers(options.first)
    first = [entry["response"] for entry in entries]
    if options.second:
        others = same_entries(entries, read_answers(options.second), options.second)
        second = [entry["response"] for entry in others]
    else:
        second = [entry["output"] for entry in entries]
    metrics, pairs = compare(entries, first, second, section, state=state_root() / "judge")
    for name, value in metrics.items():
        print(f"{name:28} {'–' if value is None else f'{value:.4g}'}")
    if options.output:
        named = [
            {"instruction": entry["instruction"], "input": entry.get("input", ""), **pair}
            for entry, pair in zip(entries, pairs)
        ]
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, {"metrics": metrics, "pairs": named})


def add_lm_eval(kinds: argparse._SubParsersAction) -> None:
    parser = add_command(
        kinds,
        "lm-eval",
        lm_eval,
        "Standard benchmarks by EleutherAI's lm-eval, through its Hugging Face backend; results go "
        "to MLflow too. Its own tasks fetch their data; a local task needs no network.",
    )
    parser.add_argument("--model", type=Path, required=True, help="language-model folder")
    parser.add_argument("--tasks", nargs="+", required=True, help="names of lm-eval's tasks")
    parser.add_argument("--include-path", type=Path, help="folder of further tasks, in YAML")
    parser.add_argument("--shots", type=int, help="examples in the prompt (the task's own number)")
    parser.add_argument("--limit", type=int, help="questions of each task (all)")
    parser.add_argument("--batch-size", type=int, default=8, help="requests computed together")
    parser.add_argument("--output", type=Path, help="JSON file for metrics and every answer")


def lm_eval(options: argparse.Namespace) -> None:
    """Print a row for each metric; log them to MLflow; write them with the answers if asked."""
    from importlib.util import find_spec

    for package in ("lm_eval", "transformers"):
        if find_spec(package) is None:
            raise UserError(f"{package} is missing: pip install 'gptmill[evaluate]'")
    from gptmill.engine.runtime import open_runtime
    from gptmill.evaluate.harness import run_tasks
    from gptmill.files import write_json
    from gptmill.tracking import Stage

    chosen = {name: getattr(options, name) for name in ("shots", "limit", "batch_size")}
    runtime = open_runtime(seed=0, threads=all_threads(), precision="float32")
    parameters = {"tasks": options.tasks, "model": str(options.model)} | chosen
    with Stage("lm_eval", parameters, {"model": options.model}) as stage:
        metrics, answers = run_tasks(
            options.model, options.tasks, runtime, include_path=options.include_path, **chosen
        )
        stage.metrics(metrics)
    for name, value in metrics.items():
        print(f"{name:40} {value:.4f}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, {"metrics": metrics, "answers": answers})
