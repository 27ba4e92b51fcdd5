"""Four small runs, each set up to go one way, and what the diagnosis says of each."""

from dataclasses import dataclass, replace

from gptmill.diagnosis import diagnose, smooth
from gptmill.params import Optimizer
from gptmill.study.draw import COLORS, panels
from gptmill.study.finding import Finding
from gptmill.study.small import CONTEXT, SmallRun, SmallText, train_small

ADAMW = {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.95, "muon": 0.0}
FEW_WINDOWS = 12


@dataclass(frozen=True)
class Setup:
    """How a run is set up, and the verdict it is meant to get."""

    verdict: str
    what: str
    optimizer: Optimizer
    few: bool = False


def setups() -> list[Setup]:
    """One for each verdict of `gptmill.diagnosis`."""
    return [
        Setup("learns well", "learning rate 0.006 falling to 0", _optimizer(6e-3, 0.0)),
        Setup("overfit", f"the same rate on {FEW_WINDOWS} windows", _optimizer(6e-3, 6e-3), True),
        Setup("underfit", "learning rate 0.00003", _optimizer(3e-5, 3e-5)),
        Setup("unstable", "learning rate 0.5, no clipping", _optimizer(0.5, 0.5, clip=0.0)),
    ]


def four_runs(text: SmallText, steps: int, seed: int) -> list[tuple[Setup, SmallRun]]:
    """Train each setup from the same initial weights."""
    few = replace(text, training=text.training[: FEW_WINDOWS * CONTEXT + 1])
    return [
        (setup, train_small(few if setup.few else text, setup.optimizer, steps, seed))
        for setup in setups()
    ]


def loss_curves(runs: list[tuple[Setup, SmallRun]]) -> Finding:
    """Both curves of each run and its diagnosis, by the rule that judges a user's own run."""
    figure, axes = panels(2, 2, 7.6, 5.0)
    rows: dict[float, dict[str, float]] = {}
    verdicts = []
    for place, (setup, run) in zip(axes, runs):
        found = diagnose(run.training, run.validation)
        verdicts.append((setup, found))
        smoothed = smooth(run.training)
        place.plot(*zip(*smoothed), color=COLORS[0], label="training")
        place.plot(*zip(*run.validation), color=COLORS[1], label="validation")
        place.set_title(f"{found.verdict}: {setup.what}", fontsize=8.5)
        place.set_ylabel("nats a character")
        trained = dict(smoothed)
        for step, loss in run.validation[1:]:
            row = rows.setdefault(step, {"step": step})
            row[f"{setup.verdict}, training"] = trained[step]
            row[f"{setup.verdict}, validation"] = loss
    axes[0].legend()
    agreed = sum(setup.verdict == found.verdict for setup, found in verdicts)
    told = "; ".join(f"{setup.what}: {found.verdict} ({found.reason})" for setup, found in verdicts)
    return Finding(
        "loss_curves",
        5,
        "Reading loss curves",
        f"Four runs of one small model, diagnosed by the rule that judges every run. {told}",
        {"runs": len(runs), "verdicts_as_set_up": agreed}
        | {f"{s.verdict.replace(' ', '_')}_last_validation_loss": run.validation[-1][1]
           for s, run in runs},
        [rows[step] for step in sorted(rows)],
        figure,
    )  # fmt: skip


def _optimizer(rate: float, final: float, clip: float = 1.0) -> Optimizer:
    return Optimizer(
        learning_rate=rate, final_learning_rate=final, warmup_steps=0, gradient_clip=clip, **ADAMW
    )
