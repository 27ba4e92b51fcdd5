"""A sweep on paper: named cases of parameters, each repeated over seeds, checked before any runs.

name: attention           # experiments are named <name>-<case>-seed<seed>
stage: finetune_classifier  # up to which stage; left out: the whole pipeline
alone: true               # that stage only, on the inputs that are there
seeds: [1, 2, 3]
cases:
  last block: {finetune_classifier.trainable: last_block}
  everything: {finetune_classifier.trainable: all}
"""

import copy
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from gptmill.dvc import definition
from gptmill.errors import UserError
from gptmill.params import PARAMS_FILE, flatten, parse, read_yaml
from gptmill.sources import Section

SEED, THREADS = "runtime.seed", "runtime.threads"


class Sweep(Section):
    """The matrix file; a case maps dotted names of params.yaml to values."""

    name: str = Field(min_length=1)
    cases: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    stage: str = ""
    alone: bool = False

    def runs(self) -> list["Run"]:
        """Every case with every seed; seeds vary fastest, so that neighbors share no work."""
        return [
            Run(
                reference(f"{self.name}-{case}-seed{seed}"),
                case,
                seed,
                {**overrides, SEED: seed},
            )
            for case, overrides in self.cases.items()
            for seed in self.seeds
        ]


@dataclass(frozen=True)
class Run:
    """One case with one seed: the name of its DVC experiment and what it overrides."""

    name: str
    case: str
    seed: int
    overrides: dict[str, Any]


def reference(text: str) -> str:
    """A name that git takes as part of a reference."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text.replace(".", "_")).strip("-")


def read_sweep(path: Path) -> Sweep:
    """The sweep of a matrix file.

    Raises:
        UserError: no such file, or a key that is missing, unknown or of the wrong type.
    """
    try:
        return Sweep.model_validate(read_yaml(path))
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()]
        raise UserError(f"{path} is not a sweep:\n" + "\n".join(faults)) from None


def check(sweep: Sweep) -> None:
    """Hold every case against params.yaml and dvc.yaml, so that nothing is queued in vain.

    Raises:
        UserError: an unknown stage or parameter, a value that does not fit, or a parameter of
            another stage where the stage runs alone.
    """
    parameters = read_yaml(PARAMS_FILE)
    if sweep.stage:
        definition(sweep.stage)
    if sweep.alone and not sweep.stage:
        raise UserError("`alone` needs a stage")
    for case, overrides in sweep.cases.items():
        parse(merged(parameters, overrides), f"case '{case}'")
        if sweep.alone:
            _check_alone(case, overrides, sweep.stage)
    names = [run.name for run in sweep.runs()]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two runs would have the name {min(twice)}: rename a case or a seed")


def merged(parameters: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The parameter tree with dotted names replaced.

    Raises:
        UserError: a name that is not in the tree; the nearest is given.
    """
    known = flatten(parameters)
    tree = copy.deepcopy(parameters)
    for name, value in overrides.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{PARAMS_FILE} has no parameter '{name}'{hint}")
        *sections, key = name.split(".")
        target = tree
        for section in sections:
            target = target[section]
        target[key] = value
    return tree


def _check_alone(case: str, overrides: dict[str, Any], stage: str) -> None:
    listed = definition(stage).get("params", [])
    tracked = [name.split(".")[0] for name in listed if isinstance(name, str)]  # not other files
    for name in overrides:
        if name.split(".")[0] not in tracked:
            raise UserError(
                f"case '{case}': {stage} does not read {name}, so alone it would run without it: "
                "leave out `alone`"
            )
