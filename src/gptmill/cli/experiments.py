"""`gptmill seeds`, `sweep`: many runs of the pipeline as DVC experiments, and what they say."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmill.cli.command import add_command
from gptmill.errors import UserError

if TYPE_CHECKING:
    from gptmill.sweep.cases import Sweep

SUMMARIES = Path("report/sweeps")


def add_seeds(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "seeds",
        seeds,
        "Repeat the pipeline with other seeds: how much of a result is luck. Each seed is a DVC "
        "experiment; the same command again goes on where it was cut off.",
    )
    parser.add_argument("count", type=int, help="seeds 1 to this")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="parameter; repeatable"
    )
    parser.add_argument("--stage", default="", help="run up to this stage, not the whole pipeline")
    parser.add_argument(
        "--alone", action="store_true", help="run --stage alone, on the inputs that are there"
    )
    parser.add_argument("--name", default="seeds", help="what the experiments' names begin with")
    _add_queue_options(parser)


def seeds(options: argparse.Namespace) -> None:
    """A sweep with one case."""
    from gptmill.sweep.cases import Sweep

    overrides = dict(map(_assignment, options.set))
    case = " ".join(f"{k.split('.')[-1]}-{v}" for k, v in overrides.items()) or "default"
    sweep = Sweep(
        name=options.name,
        cases={case: overrides},
        seeds=_seeds(options.count),
        stage=options.stage,
        alone=options.alone,
    )
    _run(sweep, options)


def add_sweep(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "sweep",
        sweep,
        "Run a matrix of cases and seeds as DVC experiments, and sum it up: mean and standard "
        "error of a metric per case, as table, CSV and plot. The same command again goes on where "
        "it was cut off.",
    )
    parser.add_argument("file", type=Path, help="YAML with name, cases, seeds, stage, alone")
    parser.add_argument("--seeds", type=int, help="seeds 1 to this instead of the file's")
    _add_queue_options(parser)


def sweep(options: argparse.Namespace) -> None:
    """The sweep of a file."""
    from gptmill.sweep.cases import read_sweep

    found = read_sweep(options.file)
    if options.seeds is not None:
        found = found.model_copy(update={"seeds": _seeds(options.seeds)})
    _run(found, options)


def _add_queue_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; the cores are shared among them"
    )
    parser.add_argument("--queue-only", action="store_true", help="queue, and start nothing")
    parser.add_argument("--metric", default="", help="such as pretrain/validation/loss")


def _run(sweep: "Sweep", options: argparse.Namespace) -> None:
    """Check, queue, work off, sum up."""
    from gptmill.sweep.cases import check
    from gptmill.sweep.experiments import queue, work_off

    if options.jobs < 1:
        raise UserError("--jobs must be at least 1")
    # One run at a time keeps the threads of params.yaml, so that it repeats what `dvc repro` gives.
    threads = None if options.jobs == 1 else max(1, (os.cpu_count() or 1) // options.jobs)
    check(sweep)
    runs = queue(sweep, threads)
    if options.queue_only:
        print(f"start them with: dvc queue start --jobs {options.jobs}")
        return
    try:
        work_off(runs, options.jobs, threads)
    except KeyboardInterrupt:
        print("the workers go on: `dvc queue status`, `dvc queue stop --kill`; sum up what is done")
    _sum_up(sweep, options.metric)


def _sum_up(sweep: "Sweep", wanted: str) -> None:
    """Print the table, write CSV and plot, and say what failed."""
    from gptmill.sweep.experiments import experiments, failure
    from gptmill.sweep.summary import choose_metric, plot, summarise, terminal_table, write_table

    known, runs = experiments(), sweep.runs()
    failed = [r.name for r in runs if r.name in known and known[r.name].state == "failed"]
    for name in failed:
        print(f"{name} failed: {failure(name)}")
    summary = summarise(runs, known, sweep.stage)
    metric = choose_metric(summary, wanted)
    print(f"\n{terminal_table(summary, metric)}\n")
    table, image = (SUMMARIES / f"{sweep.name}{ending}" for ending in (".csv", ".png"))
    write_table(summary, table)
    plot(summary, metric, image)
    print(f"{table}  {image}")
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed; the same command retries them")


def _seeds(count: int) -> list[int]:
    if count < 1:
        raise UserError(f"{count} seeds: at least 1")
    return list(range(1, count + 1))


def _assignment(text: str) -> tuple[str, Any]:
    """`name=value` with the value as YAML has it."""
    from ruamel.yaml import YAML

    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write NAME=VALUE")
    return name, YAML(typ="safe", pure=True).load(value)
