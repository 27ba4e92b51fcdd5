"""How long the very model takes for a step on this machine: a few real ones on random ids.

Where a whole step is too dear, the model gets one block fewer than two and the batch fewer rows:
time is a line in either, so two points give the whole. Where even that does not fit into memory,
the FLOPs of Chowdhery et al. 2022 (PaLM, appendix B; `model.config.flops_per_token`) are divided by
the rate of a matrix product.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.hooks import StepResult
from gptmill.engine.loop import FitConfig, Task, fit
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import TrainState
from gptmill.engine.workers import ALONE
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config, flops_per_token
from gptmill.model.gpt2 import GPT2
from gptmill.params import FinetuneClassifier, Optimizer
from gptmill.plan.memory import Shape
from gptmill.plan.sizes import language_model_size
from gptmill.tasks.classify import ClassificationTask, LabeledBatch, choose_trainable, predict
from gptmill.tasks.language_model import LanguageModelTask, TokenBatch, batch_loss

WHOLE_SECONDS = 0.4  # a step up to this long is run as it is
PART_SECONDS = 1.0  # of a step with fewer layers and rows, at most
REPEATED_SECONDS = 0.6
MOST_REPEATS = 12
STATE_TRAFFIC = 3  # times that the optimizer reads or writes each byte of the model states
MEMORY_SHARE = 0.4  # of the free memory, for a measurement
OPTIMIZER = Optimizer(
    learning_rate=1e-5, final_learning_rate=0.0, warmup_steps=0, weight_decay=0.1,
    beta1=0.9, beta2=0.95, gradient_clip=1.0, muon=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """What was measured of the machine: products a second, and bytes a second through memory."""

    flops: float
    traffic: float
    free_memory: int


class Speed:
    """Measures steps of one architecture; every method returns seconds."""

    def __init__(self, runtime: Runtime, rates: Rates) -> None:
        self.runtime = runtime
        self.rates = rates

    def language_step(self, config: GPT2Config, shape: Shape, optimizer: Optimizer) -> float:
        """One optimizer step of language-model training."""

        def make(config: GPT2Config, rows: int) -> tuple[nn.Module, Task, object]:
            ids = _ids(config, rows, shape.tokens)
            return GPT2(config), LanguageModelTask(), TokenBatch(ids, ids)

        return self._step(make, config, shape, optimizer, fewest=1, share=1.0)

    def classifier_step(
        self, config: GPT2Config, shape: Shape, section: FinetuneClassifier
    ) -> float:
        """One optimizer step of the classifier, frozen as the section says."""
        blocks = {"head": 1, "last_block": 1, "last_two_blocks": 2}.get(section.trainable, 1)

        def make(config: GPT2Config, rows: int) -> tuple[nn.Module, Task, object]:
            model = GPT2Classifier(config, labels=2)
            choose_trainable(model, section.trainable, section.lora)
            ids = _ids(config, rows, shape.tokens)
            batch = LabeledBatch(ids, np.ones_like(ids), np.zeros(rows, np.int64))
            return model, ClassificationTask([1.0, 1.0], section.readout), batch

        headless = replace(config, vocabulary_size=2, tied_head=True)
        share = flops_per_token(headless, shape.tokens) / flops_per_token(config, shape.tokens)
        optimizer = section.optimizer
        return self._step(make, config, shape, optimizer, fewest=blocks, share=share)

    def forward(self, config: GPT2Config, tokens: int, places: int, classifier: bool) -> float:
        """A token without gradients, in rows of `tokens`, about `places` of them at a time."""
        cost = flops_per_token(config, tokens) / 3 / self.rates.flops
        rows = max(1, min(places // tokens, int(PART_SECONDS / (cost * tokens))))

        def measure(config: GPT2Config) -> float:
            ids = _ids(config, rows, tokens)
            if classifier:
                model: nn.Module = GPT2Classifier(config, labels=2)
                batch = LabeledBatch(ids, np.ones_like(ids), np.zeros(rows, np.int64))
                task = ClassificationTask([1.0, 1.0], "last_token")
                work = lambda: predict(model, task, [batch] * count, self.runtime)  # noqa: E731
            else:
                model, batch = GPT2(config), TokenBatch(ids, ids)
                work = lambda: batch_loss(model, [batch] * count, self.runtime)  # noqa: E731
            model.to(self.runtime.device)
            count = self.runtime.workers(model.eval()).count  # batches at once
            return _repeated(work) / count

        whole = cost * rows * tokens
        return self._by_layers(measure, config, whole, 1) / (rows * tokens)

    def token(self, config: GPT2Config, rows: int, held: int, shared: bool = False) -> float:
        """One more token of `rows` texts, with `held` tokens in the cache.

        `shared`: of as many such batches at once as there are workers, a batch's share.
        """
        cost = 4 * language_model_size(config).parameters / self.rates.traffic

        def measure(config: GPT2Config) -> float:
            model = GPT2(config).to(self.runtime.device).eval()
            ids = _ids(config, rows, max(1, min(held, config.context_length - MOST_REPEATS - 2)))
            with self.runtime.workers(model) if shared else ALONE as workers:
                decoders = [TorchDecoder(model) for _ in range(workers.count)]
                logits = [decoder.prefill(ids, np.ones_like(ids)) for decoder in decoders]
                last = logits[0].argmax(axis=1)
                step = partial(workers.map, lambda decoder: decoder.step(last), decoders)
                return _repeated(step) / workers.count

        return self._by_layers(measure, config, cost * MOST_REPEATS, 1)

    def _step(
        self,
        make: Callable[[GPT2Config, int], tuple[nn.Module, Task, object]],
        config: GPT2Config,
        shape: Shape,
        optimizer: Optimizer,
        fewest: int,
        share: float,
    ) -> float:
        """`share` of the architecture's FLOPs are spent; `fewest` blocks keep what is trained."""
        cost = share * flops_per_token(config, shape.tokens) / self.rates.flops
        states = language_model_size(config, optimizer).states
        whole = (
            cost * shape.places * shape.accumulation + STATE_TRAFFIC * states / self.rates.traffic
        )
        if whole <= WHOLE_SECONDS:
            return self._fit(make(config, shape.rows), optimizer, shape.accumulation)
        part = replace(config, layers=min(config.layers, fewest + 1))
        each = share * flops_per_token(part, shape.tokens) / self.rates.flops * shape.tokens
        rows = max(1, min(shape.rows, int(PART_SECONDS / each)))
        if language_model_size(part, optimizer).states > MEMORY_SHARE * self.rates.free_memory:
            return whole
        scale = shape.accumulation * shape.rows / rows

        def measure(config: GPT2Config) -> float:
            made = make(config, rows)
            one, two = (self._fit(made, optimizer, count) for count in (1, 2))
            return one + max(0.0, two - one) * (scale - 1)

        return self._by_layers(measure, config, np.inf, fewest)

    def _fit(
        self, made: tuple[nn.Module, Task, object], optimizer: Optimizer, accumulation: int
    ) -> float:
        """A step of the pipeline's own loop, after one that warms up."""
        model, task, batch = made
        model.to(self.runtime.device)
        batches = ShuffledBatches([batch], lambda chosen: chosen[0], 1, 0)
        workers = self.runtime.workers(model)
        state = TrainState(model, build_optimizer(model, optimizer, workers), batches)
        marks: list[float] = []

        def mark(state: TrainState, result: StepResult) -> None:
            result.loss.item()
            marks.append(time.perf_counter())

        def run(steps: int) -> None:
            clip = optimizer.gradient_clip
            config = FitConfig(state.step + steps, accumulation, clip, lambda step: 1e-6)
            marks.append(time.perf_counter())
            fit(state, task, replace(self.runtime, compile=False), config, [mark])

        run(1)
        run(_repeats(marks[-1] - marks[0]))
        return _quick(np.diff(marks[2:]).tolist())

    def _by_layers(
        self, measure: Callable[[GPT2Config], float], config: GPT2Config, whole: float, fewest: int
    ) -> float:
        """Measured whole if that is cheap, else on a line through two numbers of layers."""
        if whole <= WHOLE_SECONDS or config.layers <= fewest + 1:
            return measure(config)
        first = measure(replace(config, layers=fewest))
        second = measure(replace(config, layers=fewest + 1))
        return first + max(0.0, second - first) * (config.layers - fewest)


def _ids(config: GPT2Config, rows: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocabulary_size, (rows, tokens))


def _quick(times: list[float]) -> float:
    """The lower quartile: what other processes on the same cores take is not the step's."""
    return float(np.quantile(times, 0.25))


def _repeats(seconds: float) -> int:
    return max(1, min(MOST_REPEATS, int(REPEATED_SECONDS / max(seconds, 1e-6))))


def _repeated(work: Callable[[], object]) -> float:
    """Seconds of a run, from a few, after one that warms up."""
    work()
    times: list[float] = []
    while not times or (len(times) < MOST_REPEATS and sum(times) < REPEATED_SECONDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return _quick(times)


def memory_traffic(device: torch.device) -> float:
    """Bytes a second that a copy of 64 MiB reads and writes."""
    source = torch.ones(1 << 24, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        target[0].item()

    return 2 * source.nbytes / _repeated(copy)
