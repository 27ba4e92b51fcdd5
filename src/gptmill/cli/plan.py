"""`gptmill plan`: what a run will cost before it runs."""

import argparse
import json
import sys
from dataclasses import replace

from gptmill.cli.command import add_command


def add_plan(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "plan",
        plan,
        "Say what params.yaml will cost here: memory, steps, minutes and disk. A few real steps "
        "are timed; nothing is downloaded or kept. Status 1 if it does not fit, with what would.",
    )
    parser.add_argument("--profile", help="plan profiles/NAME.yaml, params.yaml left as it is")
    parser.add_argument("--memory", type=float, help="as if so many GB of memory were free")
    parser.add_argument("--disk", type=float, help="as if so many GB of disk were free")
    parser.add_argument("--json", action="store_true", help="bytes and seconds, for programs")
    many = parser.add_argument_group("pretraining on many accelerators, by formulas alone")
    many.add_argument("--processes", type=int, nargs="+", help="such as 8 64 512")
    many.add_argument("--accelerator", choices=("h100", "a100"), default="h100")
    many.add_argument("--strategy", choices=("ddp", "fsdp2"), help="else ddp where it fits")
    many.add_argument("--batch", type=int, default=512, help="rows of a step, in all processes")
    many.add_argument("--mfu", type=float, default=0.4, help="share of the peak that one reaches")
    many.add_argument("--price", type=float, default=2.5, help="dollars for an hour of one")


def plan(options: argparse.Namespace) -> None:
    """Print the table or the JSON; exit with 1 if the run does not fit."""
    if options.processes:
        return _plan_cluster(options)
    from gptmill.engine.runtime import open_runtime
    from gptmill.params import load
    from gptmill.plan.machine import measure_machine
    from gptmill.plan.table import as_json, as_text
    from gptmill.plan.whole import make_plan
    from gptmill.profiles import profile_parameters

    parameters = profile_parameters(options.profile) if options.profile else load()
    runtime = open_runtime(**dict(parameters.runtime))
    print("measuring this machine …", file=sys.stderr)
    machine = measure_machine(runtime)
    if options.memory is not None:
        machine = replace(machine, memory=round(options.memory * 1e9))
    if options.disk is not None:
        machine = replace(machine, disk=round(options.disk * 1e9))
    made = make_plan(parameters, machine)
    print(json.dumps(as_json(made), indent=2) if options.json else as_text(made))
    if not made.fits:
        sys.exit(1)


def _plan_cluster(options: argparse.Namespace) -> None:
    """GPT-2's four sizes and the model of params.yaml, on each number of processes."""
    from gptmill.params import load
    from gptmill.plan.cluster import ACCELERATORS, plan_cluster
    from gptmill.plan.table import cluster_json, cluster_text
    from gptmill.profiles import profile_parameters

    parameters = profile_parameters(options.profile) if options.profile else load()
    accelerator = ACCELERATORS[options.accelerator]
    if options.memory is not None:
        accelerator = replace(accelerator, memory=options.memory * 1e9)
    plan = plan_cluster(
        parameters, accelerator, options.processes, options.batch, options.mfu,
        options.strategy,
    )  # fmt: skip
    if options.json:
        print(json.dumps(cluster_json(plan, options.price), indent=2))
    else:
        print(cluster_text(plan, options.price))
