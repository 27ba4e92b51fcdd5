"""Standard benchmarks: EleutherAI's lm-eval on a model folder, through its Hugging Face backend."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptmill.engine.runtime import Runtime
from gptmill.errors import UserError
from gptmill.fetch.environment import offline_from_environment
from gptmill.weights.folder import load_language_model


def run_tasks(
    folder: Path,
    tasks: Sequence[str],
    runtime: Runtime,
    *,
    include_path: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Run lm-eval's tasks, by name, on a language-model folder in float32.

    Args:
        include_path: folder of more tasks (YAML); lm-eval's own are read if one is not there.
        shots: examples in each prompt; None is the task's own number.
        limit: questions per task; None is all.

    Returns:
        Metrics named `<task>/<metric>` (`<metric>.<filter>` where lm-eval filters answers), and for
        each task its questions: `question` (number), `target` and `answers`, what the model gave:
        log-likelihoods in nats with whether they are greedy, or texts.

    Raises:
        UserError: no such folder or task, or a task whose data cannot be had.
    """
    if offline_from_environment():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    load_language_model(folder)  # says better than transformers what is wrong with a folder
    manager = _manager(tasks, include_path)
    model = HFLM(str(folder), device=str(runtime.device), dtype="float32", batch_size=batch_size)
    try:
        found = simple_evaluate(
            model, tasks=list(tasks), task_manager=manager, num_fewshot=shots, limit=limit
        )
    except (OSError, ConnectionError, ValueError) as error:
        raise UserError(f"lm-eval cannot run {', '.join(tasks)}: {error}") from error
    return _metrics(found["results"]), {
        task: [_question(sample) for sample in samples]
        for task, samples in found["samples"].items()
    }


def _manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """A task manager that knows all tasks; lm-eval's own thousands are read only when needed."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise UserError(f"{include_path} is not a folder of tasks")
    if include_path is not None:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=include_path)
    for task in tasks:
        if task not in manager.all_tasks:
            near = difflib.get_close_matches(task, manager.all_tasks, n=3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise UserError(f"lm-eval has no task '{task}'{hint}")
    return manager


def _metrics(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """lm-eval names a metric `acc,none` and its error `acc_stderr,none`, filter last."""
    metrics = {}
    for task, values in results.items():
        for name, value in values.items():
            metric, comma, kept = name.partition(",")
            if comma and isinstance(value, int | float):
                metrics[f"{task}/{metric}" + (f".{kept}" if kept != "none" else "")] = float(value)
    return metrics


def _question(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "question": sample["doc_id"],
        "target": sample["target"],
        "answers": sample["filtered_resps"],
    }
