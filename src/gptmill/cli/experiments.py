"""`gptmill seeds`, `sweep`, `tune`: many runs of the pipeline, and what they say."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmill.cli.command import add_command
from gptmill.errors import UserError
from gptmill.process.interrupt import keeps

if TYPE_CHECKING:
    from gptmill.search.cases import Sweep

SUMMARIES, STUDIES, SEARCHES = (
    Path("report/sweeps"),
    Path("report/studies"),
    Path("profiles/search"),
)


def add_seeds(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "seeds",
        seeds,
        "Repeat the pipeline with other seeds: how much of a result is luck. Each seed is a DVC "
        "experiment; the same command again continues where it was cut off.",
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
    from gptmill.search.cases import Sweep

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
        "error of a metric per case, as table, CSV and plot. The same command again continues "
        "where it was cut off.",
    )
    parser.add_argument("file", type=Path, help="YAML with name, cases, seeds, stage, alone")
    parser.add_argument("--seeds", type=int, help="seeds 1 to this instead of the file's")
    _add_queue_options(parser)


def sweep(options: argparse.Namespace) -> None:
    """The sweep of a file."""
    from gptmill.search.cases import read_sweep

    found = read_sweep(options.file)
    if options.seeds is not None:
        found = found.model_copy(update={"seeds": _seeds(options.seeds)})
    _run(found, options)


def add_tune(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "tune",
        tune,
        "Search for better parameters of a stage with Optuna. The study is kept, so the same "
        "command continues where it was cut off; in MLflow each trial is a child of the study.",
    )
    parser.add_argument("stage", choices=["pretrain", "finetune_classifier"])
    parser.add_argument("--trials", type=int, default=20, help="in all, earlier calls counted")
    parser.add_argument("--timeout", type=float, help="begin no trial after so many seconds")
    parser.add_argument("--study", help="name of the study (that of the stage)")
    parser.add_argument("--search", type=Path, help=f"search file ({SEARCHES}/STAGE.yaml)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="parameter of every trial"
    )


def tune(options: argparse.Namespace) -> None:
    """Run the study, print the best parameters as an experiment, draw the history."""
    try:
        from gptmill.search.optimization import Study
        from gptmill.search.search import read_search
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install '.[sweep]'") from None
    from gptmill.params import PARAMS_FILE, parse, read_yaml
    from gptmill.search.cases import merged

    parameters = merged(read_yaml(PARAMS_FILE), dict(map(_assignment, options.set)))
    parse(parameters, "params.yaml with --set")
    search = read_search(options.search or SEARCHES / f"{options.stage}.yaml", parameters)
    study = Study(options.study or options.stage, options.stage, search, parameters)
    keeps("every finished trial")
    study.run(options.trials, options.timeout)
    if study.best is None:
        print("no trial has finished")
        return
    image = STUDIES / f"{study.study.study_name}.png"
    study.plot(image)
    print(f"\nbest {search.objective} {study.best.value:.5g}, by")
    print(f"  {study.command() or 'params.yaml as it is'}\n{image}")


def _add_queue_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; the cores are shared among them"
    )
    parser.add_argument("--queue-only", action="store_true", help="queue, and start nothing")
    parser.add_argument("--metric", default="", help="such as pretrain/validation/loss")


def _run(sweep: "Sweep", options: argparse.Namespace) -> None:
    """Check, queue, work off, sum up."""
    from gptmill.search.cases import check
    from gptmill.search.experiments import queue, run_queue

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
        run_queue(runs, options.jobs, threads)
    except KeyboardInterrupt:
        print(
            "the workers continue: `dvc queue status`, `dvc queue stop --kill`; sum up what is done"
        )
        keeps("what is done")
        _sum_up(sweep, options.metric)
        raise
    _sum_up(sweep, options.metric)


def _sum_up(sweep: "Sweep", wanted: str) -> None:
    """Print the table, write CSV and plot, and say what failed."""
    from gptmill.search.experiments import experiments, failure
    from gptmill.search.summary import choose_metric, plot, summarize, terminal_table, write_table

    known, runs = experiments(), sweep.runs()
    failed = [r.name for r in runs if r.name in known and known[r.name].state == "failed"]
    for name in failed:
        print(f"{name} failed: {failure(name)}")
    summary = summarize(runs, known, sweep.stage)
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
