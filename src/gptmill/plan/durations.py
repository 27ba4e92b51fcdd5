"""Seconds of each stage on this machine, from counts, measured steps and measured starts."""

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from gptmill.evaluate import python_completion
from gptmill.export.parity import ALONE, COMPARED
from gptmill.model.config import GPT2Config
from gptmill.plan.disk import Disk, checkpoint_bytes
from gptmill.plan.machine import Machine
from gptmill.plan.peaks import PASSAGES, groups, held_out_passages
from gptmill.plan.sizes import ModelSize, classifier_size, language_model_size
from gptmill.plan.speed import Speed
from gptmill.plan.workload import Run, Workload
from gptmill.study import small
from gptmill.study.curves import setups
from gptmill.study.draw import panels, save

DOWNLOAD_RATE = 5_000_000  # bytes a second, assumed: a plan asks nobody
TRIED_TOKENS = 40  # that `load_gpt2` writes, to see that loading worked
GRAPH_COPIES = 12  # times that a model's bytes pass through memory to be written, read, compared
STUDY_RUNS = 8  # trainings of `study.steps`: four curves, and two objectives of twice as many
STUDY_PICTURES = 16
SMALL_STEPS = 3 * small.POINTS  # of the study's own model, to time it
DVC_SHARE = 0.25  # of DVC's start that each stage costs again: hashes, lock file, state
ROW_SECONDS = 2e-5  # of reading, splitting and writing a message or an entry


def stage_seconds(
    work: Workload, machine: Machine, speed: Speed, disk: Mapping[str, Disk]
) -> dict[str, float]:
    """Each stage of dvc.yaml; what waits for a judge's server is not counted."""
    counts = work.counts
    rows = counts.messages.sample.items
    entries = counts.entries
    seconds = {
        "download@corpus": counts.corpus.sample.seconds,
        "download@classification": counts.messages.sample.seconds,
        "download@instructions": entries.sample.seconds,
        "tokenize": counts.corpus.seconds,
        "pretrain": _pretraining(work, machine, speed),
        "study": study_seconds(work.parameters.study.steps),
        **{f"load_gpt2@{task}": _loading(work, task, speed) for task in work.foundations},
        "prepare_classification": ROW_SECONDS * rows,
        "finetune_classifier": _classifying(work, machine, speed),
        "prepare_instructions": ROW_SECONDS * entries.sample.items,
        "finetune_instructions": _instructing(work, machine, speed),
        "respond": _responding(work, speed),
        "export_onnx": _exporting(work, machine, speed),
        "judge": 0.0,
        "report": 0.0,
    }
    return {
        name: value + _around(name, value, machine, disk[name]) for name, value in seconds.items()
    }


def pipeline_seconds(stages: Mapping[str, float], machine: Machine) -> float:
    """All stages and what `dvc repro` adds."""
    return sum(stages.values()) + machine.pipeline_start * (1 + DVC_SHARE * len(stages))


def _around(name: str, seconds: float, machine: Machine, disk: Disk) -> float:
    """Imports and the tracker, downloads, writing outputs and DVC's copy of them."""
    starts = sum(machine.starts[group] for group in groups(name, seconds))
    return starts + disk.fetched / DOWNLOAD_RATE + 2 * disk.outputs / machine.disk_rate


def _pretraining(work: Workload, machine: Machine, speed: Speed) -> float:
    section, config, run = work.parameters.pretrain, work.pretrained, work.pretrain
    step = speed.language_step(config, run.typical, section.optimizer)
    size = language_model_size(config, section.optimizer)
    window = section.model.context_length
    final = _sliding(work, window, section.evaluation_stride)
    forward = _document_forward(work, config, window, speed)
    one = speed.token(config, 1, window // 2)
    samples = -(-run.steps // section.sample_every) * section.sampling.max_new_tokens
    completing = 0.0
    if section.completions:
        batches = -(-section.completions // python_completion.BATCH)
        many = speed.token(config, python_completion.BATCH, window // 2)
        completing = batches * section.sampling.max_new_tokens * many
    return (
        _training(run, step, forward, size, machine) + final * forward + samples * one + completing
    )


def _training(run: Run, step: float, forward: float, size: ModelSize, machine: Machine) -> float:
    """Steps, evaluations of the curve, and checkpoints."""
    saving = run.saves * checkpoint_bytes(size) / machine.disk_rate
    return run.steps * step + run.evaluations * run.evaluated * forward + saving


def _sliding(work: Workload, window: int, stride: int) -> float:
    """Tokens computed for the held-out split, each seen with `window - stride` tokens before."""
    tokens, lengths = (
        work.counts.corpus.tokens["validation"],
        work.counts.corpus.held_out_lengths,
    )
    long = lengths[lengths > window].sum() / lengths.sum()
    return tokens * (1 - long + long * window / stride)


def _document_forward(work: Workload, config: GPT2Config, window: int, speed: Speed) -> float:
    """Seconds a token of held-out documents."""
    width = min(window, max(2, int(work.counts.corpus.held_out_lengths.mean())))
    return speed.forward(config, width, 8192, classifier=False)


def _loading(work: Workload, task: str, speed: Speed) -> float:
    section, config = getattr(work.parameters.load_gpt2, task), work.foundations[task].config
    window = config.context_length
    limit = section.evaluation_tokens / max(1, work.counts.corpus.tokens["validation"])
    tokens = min(1.0, limit) * _sliding(work, window, max(1, window // 2))
    forward = _document_forward(work, config, window, speed)
    return tokens * forward + TRIED_TOKENS * speed.token(config, 1, TRIED_TOKENS)


def _classifying(work: Workload, machine: Machine, speed: Speed) -> float:
    section, config = work.parameters.finetune_classifier, work.foundations["classifier"].config
    run, rows = work.classifier, work.counts.messages
    step = speed.classifier_step(config, run.typical, section)
    size = classifier_size(config, section.trainable, section.lora, section.optimizer)
    forward = speed.forward(config, run.tokens, 64 * run.tokens, classifier=True)
    final = (rows.count["validation"] + rows.count["test"]) * run.tokens
    return _training(run, step, forward, size, machine) + final * forward + rows.baseline


def _instructing(work: Workload, machine: Machine, speed: Speed) -> float:
    section = work.parameters.finetune_instructions
    config, run = work.foundations["instructions"].config, work.instructions
    step = speed.language_step(config, run.typical, section.optimizer)
    size = language_model_size(config, section.optimizer)
    forward = speed.forward(config, run.tokens, 32 * run.tokens, classifier=False)
    return _training(run, step, forward, size, machine)


def _responding(work: Workload, speed: Speed) -> float:
    """A batch continues until its longest answer ends; answers are as long as the references."""
    section, config = work.parameters.respond, work.foundations["instructions"].config
    entries = work.counts.entries
    rows = min(section.batch_size, max(1, entries.count["test"]))
    batches = -(-entries.count["test"] // rows)
    prompt = int(entries.prompts.mean())
    new = min(section.sampling.max_new_tokens, _longest_of(entries.answers, rows) + 1)
    prefill = rows * prompt * speed.forward(config, prompt, rows * prompt, classifier=False)
    return batches * (prefill + new * speed.token(config, rows, prompt, shared=True))


def _longest_of(lengths: np.ndarray, count: int) -> int:
    """The longest of so many, on average."""
    drawn = np.random.default_rng(0).choice(lengths, (200, count))
    return round(float(drawn.max(axis=1).mean()))


def _exporting(work: Workload, machine: Machine, speed: Speed) -> float:
    """Each model and variant is written and compared with PyTorch, which computes the same."""
    section = work.parameters.export_onnx
    folders = 1 + len(section.quantization)
    corpus, entries = work.counts.corpus.held_out_lengths, work.counts.entries
    continued = [
        (work.pretrained, held_out_passages(work), int(corpus.mean()), int(corpus.mean()) // 2),
        (
            work.foundations["instructions"].config,
            min(PASSAGES, entries.count["test"]),
            int(entries.lengths["test"].mean()),
            int(entries.answers.mean()),
        ),
    ]
    total = 0.0
    for config, passages, whole, steps in continued:
        whole = min(whole, config.context_length)
        compared = min(COMPARED, passages) * min(steps, whole // 2)
        one, many = (speed.token(config, rows, whole) for rows in (1, passages))
        passage = max(one, whole * speed.forward(config, whole, whole, classifier=False))
        side = passages * passage + compared * one + section.greedy_steps * many
        total += (1 + folders) * side + folders * _passing(config, machine)
    return total + _exporting_classifier(work, machine, speed, folders)


def _exporting_classifier(work: Workload, machine: Machine, speed: Speed, folders: int) -> float:
    config, run, rows = work.foundations["classifier"].config, work.classifier, work.counts.messages
    forward = speed.forward(config, run.tokens, 2048, classifier=True)
    tested = rows.count["test"] * run.tokens * forward
    alone = ALONE * speed.forward(config, run.tokens, run.tokens, classifier=True) * run.tokens
    return tested + folders * (tested + alone + _passing(config, machine))


def _passing(config: GPT2Config, machine: Machine) -> float:
    """A model's bytes through memory and to disk."""
    size = language_model_size(config).weights
    return GRAPH_COPIES * size / machine.rates.traffic + size / machine.disk_rate


def study_seconds(steps: int) -> float:
    """The study's small runs and pictures, from a short run and a picture made here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        text = small.small_text(["The cat sat on the mat. " * 200], ["The dog ran. " * 300])
        few, more = (_small_run_seconds(text, count) for count in (small.POINTS, SMALL_STEPS))
    finally:
        torch.set_num_threads(threads)
    each = max(0.0, more - few) / (SMALL_STEPS - small.POINTS)  # both have a curve's evaluations
    run = few + (steps - small.POINTS) * each
    return STUDY_RUNS * run + STUDY_PICTURES * _picture_seconds()


def _small_run_seconds(text: small.SmallText, steps: int) -> float:
    """A run of the study's own model, the quicker of two."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        small.train_small(text, setups()[0].optimizer, steps, 0)
        times.append(time.perf_counter() - start)
    return min(times)


def _picture_seconds() -> float:
    """Drawing and writing two panels, after a first that finds the fonts."""
    with TemporaryDirectory() as folder:
        for _ in range(2):
            start = time.perf_counter()
            figure, axes = panels(1, 2)
            for place in axes:
                place.plot(range(100), label="line")
                place.legend()
            save(figure, Path(folder) / "picture.png")
        return time.perf_counter() - start
