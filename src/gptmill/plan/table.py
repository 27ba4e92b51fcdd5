"""A plan as a table of at most 100 columns, and as JSON."""

from typing import Any

from gptmill.plan.cluster import ClusterPlan, Share
from gptmill.plan.memory import Memory
from gptmill.plan.whole import Plan, Shortage, StagePlan

MEGA, GIGA, TERA = 10**6, 10**9, 10**12
COLUMNS = ("base", "weights", "grads", "optim", "activ", "logits", "best", "other")


def as_text(plan: Plan) -> str:
    """Models, stages, totals, what does not fit and what would, and what was assumed."""
    machine = plan.machine
    half = "bfloat16" if plan.compute.half else "float32"
    lines = [
        f"{plan.profile} on {machine.name}, {half} at {machine.rates.flops / GIGA:.0f} GFLOP/s;",
        f"free: {machine.memory / GIGA:.1f} GB of memory, {machine.disk / GIGA:.0f} GB of disk",
        "",
        *_models(plan),
        "",
        "memory in MB: total = " + " + ".join(COLUMNS),
        _row("stage", "total", *COLUMNS, "steps", "time", "disk"),
        *(_stage(stage) for stage in plan.stages),
        _row("most / all", _mega(plan.peak.memory.total), *[""] * len(COLUMNS), "",
             duration(plan.seconds), _mega(plan.disk)),
        "",
        *_verdict(plan),
    ]  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything in bytes and seconds."""
    return {
        "profile": plan.profile,
        "fits": plan.fits,
        "precision": "bfloat16" if plan.compute.half else "float32",
        "machine": {
            "name": plan.machine.name,
            "memory": plan.machine.memory,
            "disk": plan.machine.disk,
            "flops": plan.machine.rates.flops,
            "disk_rate": plan.machine.disk_rate,
        },
        "models": {
            name: {"parameters": total, "trained": trained}
            for name, (total, trained) in plan.models.items()
        },
        "stages": {
            stage.name: {
                "memory": {"total": stage.memory.total, **_parts(stage.memory)},
                "steps": stage.steps,
                "seconds": stage.seconds,
                "disk": vars(stage.disk),
            }
            for stage in plan.stages
        },
        "memory": plan.peak.memory.total,
        "seconds": plan.seconds,
        "disk": plan.disk,
        "shortages": [vars(shortage) for shortage in plan.shortages],
        "assumed": plan.assumed,
    }


def cluster_text(plan: ClusterPlan, price: float) -> str:
    """A line for each model and number of processes."""
    machine = plan.accelerator
    context = {name: config.context_length for name, (config, _) in plan.models.items()}
    lines = [
        f"pretraining on {machine.name}: {machine.memory / GIGA:.0f} GB and "
        f"{machine.flops / TERA:.0f} TFLOP/s each, of which {plan.mfu:.0%} are assumed to be",
        f"reached; {machine.link / GIGA:.0f} GB/s within a machine of {machine.per_machine}, "
        f"{machine.network / GIGA:.0f} GB/s between machines; bfloat16; a step has "
        f"{plan.batch} rows",
        "of a whole context (" + ", ".join(f"{n} {tokens:,}" for n, tokens in context.items())
        + " tokens).",
        "",
        f"{'model':12}{'processes':>10}{'strategy':>9}{'rows':>6}{'accum':>6}{'GB':>7}"
        f"{'sent, GB':>9}{'effic.':>7}{'tokens/s':>12}{'hours':>9}{'dollars':>11}",
    ]  # fmt: skip
    for name, (config, shares) in plan.models.items():
        for count, found in shares.items():
            lines.append(f"{name:12}{count:>10,}" + _share(plan, config.context_length, count,
                                                           found, price))  # fmt: skip
    return "\n".join(
        [*lines, "", "hours: on 20 tokens a parameter (Hoffmann et al. 2022). docs/plan.md has the "
         "formulas and what was measured of them."]
    )  # fmt: skip


def _share(plan: ClusterPlan, context: int, count: int, found: Share | None, price: float) -> str:
    if found is None:
        return "  does not fit, whatever the micro-batch"
    rate = plan.batch * context / found.seconds
    dollars = found.hours * count * price
    return (
        f"{found.strategy:>9}{found.rows:>6}{found.accumulation:>6}{found.memory / GIGA:>7.1f}"
        f"{found.sent / GIGA:>9.2f}{found.efficiency:>7.0%}{rate:>12,.0f}{_short(found.hours):>9}"
        f"{_short(dollars):>11}"
    )


def _short(value: float) -> str:
    """Three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cluster_json(plan: ClusterPlan, price: float) -> dict[str, Any]:
    """The same in bytes, seconds and dollars."""
    return {
        "accelerator": vars(plan.accelerator),
        "rows": plan.batch,
        "mfu": plan.mfu,
        "models": {
            name: {
                str(count): vars(found) | {"dollars": found.hours * count * price}
                for count, found in shares.items() if found is not None
            }
            for name, (_, shares) in plan.models.items()
        },
    }  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, to two digits or so."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5970:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _models(plan: Plan) -> list[str]:
    rows = []
    for name, (total, trained) in plan.models.items():
        learns = "" if trained == total else f", {trained:,} of them trained"
        rows.append(f"{name:13} {total:13,} parameters{learns}")
    return rows


def _stage(stage: StagePlan) -> str:
    parts = [_mega(value) for value in _parts(stage.memory).values()]
    steps = f"{stage.steps:,}" if stage.steps else ""
    total = _mega(stage.memory.total)
    disk = _mega(stage.disk.kept)
    return _row(stage.name, total, *parts, steps, duration(stage.seconds), disk)


def _parts(memory: Memory) -> dict[str, int]:
    other = memory.data + sum(memory.parts.values())
    values = (
        memory.base, memory.weights, memory.gradients, memory.optimizer, memory.activations,
        memory.logits, memory.best, other,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _row(name: str, *cells: str) -> str:
    widths = (6, 6, 8, 6, 6, 6, 7, 6, 6, 7, 6, 7)
    return f"{name:23}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))


def _mega(size: int) -> str:
    return f"{size / MEGA:.0f}" if size >= MEGA / 2 else ""


def _verdict(plan: Plan) -> list[str]:
    lines = []
    for shortage in plan.shortages:
        lines += _shortage(shortage, plan)
    if plan.disk > plan.machine.disk:
        lines.append(
            f"The disk is too small: {plan.disk / GIGA:.1f} GB needed, "
            f"{plan.machine.disk / GIGA:.1f} GB free.\n  `dvc config cache.type "
            "reflink,hardlink,copy` spares DVC's second copy,\n  `export_onnx.quantization: []` "
            "the variants."
        )
    if plan.fits:
        lines.append(f"It fits; {plan.peak.name} needs most memory.")
    lines.append("Disk counts DVC's cache, which doubles, and not the virtual environment.")
    return [*lines, *(f"assumed: {said}" for said in plan.assumed)]


def _shortage(shortage: Shortage, plan: Plan) -> list[str]:
    lines = [
        f"{shortage.stage} does not fit: {shortage.needed / GIGA:.1f} GB needed, "
        f"{plan.machine.memory / GIGA:.1f} GB free."
    ]
    if shortage.changes is None:
        return [*lines, "  Nothing that was tried fits: a smaller model, or more memory."]
    lines.append("  This would fit:")
    return lines + [f"    {name}: {value!r}" for name, value in shortage.changes.items()]
