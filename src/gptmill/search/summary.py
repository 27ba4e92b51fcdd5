"""What a sweep found: mean ± standard error over the seeds of each case."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptmill.compare.compare import Repeated, larger_than_noise, repeated
from gptmill.errors import UserError
from gptmill.files import atomic_file
from gptmill.search.cases import Run
from gptmill.search.experiments import Experiment

WORDS = {True: "larger than noise", False: "within noise", None: "too few seeds"}


@dataclass(frozen=True)
class Summary:
    """For every metric and case, the values of its finished seeds."""

    cases: list[str]
    values: dict[str, dict[str, list[float]]]

    def of(self, metric: str, case: str) -> Repeated | None:
        """Mean and standard error; `None` while no seed of the case is finished."""
        values = self.values[metric].get(case)
        return repeated(values) if values else None


def summarize(runs: Sequence[Run], known: dict[str, Experiment], stage: str) -> Summary:
    """Gather the metrics of `stage`; of every stage where it is empty.

    Other stages did not run: what their files say is of an earlier run.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        found = known.get(run.name)
        if found is None or found.state != "success":
            continue
        for name, value in found.metrics.items():
            if not stage or name.startswith(f"{stage.replace('@', '_')}/"):
                values.setdefault(name, {}).setdefault(run.case, []).append(value)
    return Summary(list(dict.fromkeys(run.case for run in runs)), values)


def choose_metric(summary: Summary, wanted: str) -> str:
    """The wanted metric; without a wish the test accuracy, else the validation loss, else any.

    Raises:
        UserError: there is none of that name, or none at all.
    """
    if not summary.values:
        raise UserError("no run of the sweep has finished, so there is nothing to sum up")
    if wanted and wanted not in summary.values:
        raise UserError(f"no metric '{wanted}'; there are: {', '.join(sorted(summary.values))}")
    endings = ("finetune_classifier/test/accuracy", "pretrain/validation/loss", "validation/loss")
    usual = [name for ending in endings for name in summary.values if name.endswith(ending)]
    return wanted or next(iter([*usual, *summary.values]))


def terminal_table(summary: Summary, metric: str) -> str:
    """A line for each case; the first is what the others are held against (Welch's test, 95%)."""
    first = summary.of(metric, summary.cases[0])
    width = max(map(len, [*summary.cases, "case"]))
    lines = [f"{metric}, mean ± standard error", f"{'case':{width}}  seeds  {'value':20}  against"]
    for case in summary.cases:
        row = summary.of(metric, case)
        if row is None:
            lines.append(f"{case:{width}}  {0:5}  –")
            continue
        value = f"{row.mean:.5g} ± {row.error:.2g}" if row.count > 1 else f"{row.mean:.5g}"
        verdict = ""
        if first and case != summary.cases[0]:
            word = WORDS[larger_than_noise(first, row)]
            verdict = f"{row.mean - first.mean:+.3g}, {word}"
        lines.append(f"{case:{width}}  {row.count:5}  {value:20}  {verdict}".rstrip())
    return "\n".join(lines)


def write_table(summary: Summary, path: Path) -> None:
    """A CSV with a row for every metric and case."""
    import csv

    with atomic_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["metric", "case", "seeds", "mean", "standard_error", "values"])
        for metric in summary.values:
            for case, values in summary.values[metric].items():
                row = repeated(values)
                error = row.error if row.count > 1 else ""
                listed = " ".join(map(str, values))
                writer.writerow([metric, case, row.count, row.mean, error, listed])


def plot(summary: Summary, metric: str, path: Path) -> None:
    """Each case's mean with its standard error, and a dot for each seed.

    Points, not bars: the axis shows the range of the values, and a bar that is cut misleads.
    """
    from matplotlib.figure import Figure

    cases = [case for case in summary.cases if case in summary.values[metric]][::-1]
    rows = [summary.values[metric][case] for case in cases]
    means = [repeated(values) for values in rows]
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    errors = [mean.error if mean.count > 1 else 0.0 for mean in means]
    places = range(len(cases))
    for place, values in enumerate(rows):
        axes.plot(values, [place] * len(values), "o", color="#9db8d9", markersize=5)
    axes.errorbar(
        [mean.mean for mean in means], places, xerr=errors, fmt="D", capsize=4, color="#1f3b5c"
    )
    axes.set_yticks(places, cases)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"{metric}\nmean ± standard error, and each seed", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
