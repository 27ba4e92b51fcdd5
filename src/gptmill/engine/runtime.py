"""Where and how tensors are computed: device, threads, precision, compilation, several processes.

Everything that is off is an object or a function that does nothing, so that the training loop has
no branches for it.
"""

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from gptmill.engine.parallel import checkpoint_blocks, fully_sharded
from gptmill.engine.workers import ALONE, Workers
from gptmill.errors import UserError, first_line
from gptmill.model.products import linear
from gptmill.params import Launch

# Below this many parameters kernels are small and a worker's copy of the gradients costs little.
SMALL_MODEL = 30_000_000
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Runtime:
    """Built by `open_runtime`; `world_size` processes train together, this one being `rank`."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    launch: Launch | None = None
    small_model_workers: Workers = field(default=ALONE, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the one process that tracks and writes."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager:
        """Matrix products in `dtype`; parameters and reductions stay float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def workers(self, model: nn.Module) -> Workers:
        """Threads to share rows among, by a rule from the model alone; else the kernels' own."""
        small = sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL
        # Dropout draws from PyTorch's one generator: threads would take turns by chance.
        random = any(module.p > 0 for module in model.modules() if isinstance(module, nn.Dropout))
        return self.small_model_workers if small and not (random and model.training) else ALONE

    def infer(
        self, model: nn.Module, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> list[Result]:
        """`function` of each item, without gradients, in evaluation mode and this precision."""

        def compute(item: Item) -> Result:
            with torch.inference_mode(), self.autocast():
                return function(item)

        with evaluating(model), self.workers(model) as workers:
            return self.map(workers, compute, items)

    def map(
        self, workers: Workers, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> list[Result]:
        """`function` of each item, in their order: every process computes its share of them, and
        has the results of all."""
        if self.world_size == 1:
            return workers.map(function, items)
        items = list(items)
        own = workers.map(function, items[self.rank :: self.world_size])
        shares: list[Any] = [None] * self.world_size
        distributed.all_gather_object(shares, own)
        return [shares[i % self.world_size][i // self.world_size] for i in range(len(items))]

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array on the device, copied while the host continues where that is possible."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # memory is pinned for CUDA alone
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def training_model(self, model: nn.Module) -> nn.Module:
        """What the loop calls: the model itself, compiled, or wrapped to average gradients.

        The caller keeps the raw model, so that no checkpoint carries a wrapper's prefix.
        """
        if self.launch is not None and self.launch.activation_checkpointing:
            checkpoint_blocks(model)
        if self.compile:
            model = torch.compile(model)
        if self.world_size > 1 and not self.shards:
            return nn.parallel.DistributedDataParallel(model)
        return model

    @property
    def shards(self) -> bool:
        """Whether each process holds a part of the parameters (FSDP2)."""
        return self.world_size > 1 and self.launch is not None and self.launch.strategy == "fsdp2"

    def spread(self, model: nn.Module) -> nn.Module:
        """The model to train: itself, or a copy sharded over the processes.

        The optimizer takes its parameters, so it is built after this.
        """
        if not self.shards:
            return model
        offload = self.launch is not None and self.launch.cpu_offload
        return fully_sharded(deepcopy(model), self.device, self.dtype, offload)

    @contextmanager
    def exchanging(self, model: nn.Module, now: bool) -> Iterator[None]:
        """Whether the backward pass in the block exchanges gradients between processes."""
        if self.world_size == 1:
            yield
        elif self.shards:
            model.set_requires_gradient_sync(now)
            yield
        else:
            with nullcontext() if now else model.no_sync():
                yield

    def begin_step(self, step: int) -> None:
        """Several processes draw dropout by step and rank, which a resumed run knows too."""
        if self.world_size > 1:
            entropy = np.random.SeedSequence([self.seed, step, self.rank])
            torch.manual_seed(int(entropy.generate_state(1)[0]))

    def fused(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function` of tensors, compiled where the model is: its passes over them become one."""
        return _compiled(function) if self.compile else function

    def total(self, value: float) -> float:
        """The sum of `value` over all processes."""
        if self.world_size == 1:
            return value
        # On the device for NCCL; gloo takes the host's, and has float64 there, which MPS lacks.
        device = self.device if self.device.type == "cuda" else "cpu"
        summed = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(summed)
        return summed.item()

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def agreed(self, choose: Callable[[], Result]) -> Result:
        """What the first process chooses; the others do not call `choose`."""
        if self.world_size == 1:
            return choose()
        choice = [choose() if self.first else None]
        distributed.broadcast_object_list(choice, src=0, device=self.device)
        return choice[0]

    def peak_flops(self) -> float:
        """Floating-point operations per second of a large matrix product, measured here and now.

        The denominator of the model's FLOPs utilisation: a figure of this machine in this
        precision, not of a data sheet.
        """
        size = 8192 if self.device.type == "cuda" else 2048
        matrix = torch.randn(size, size, device=self.device, dtype=self.dtype)
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            linear(matrix, matrix)[0, 0].item()
            best = min(best, time.perf_counter() - start)
        return 2 * size**3 / best


def open_runtime(
    seed: int, threads: int, precision: str, compile: bool = False, launch: Launch | None = None
) -> Runtime:
    """Seed, set threads, and choose the device: `GPTMILL_DEVICE`, else CUDA or Apple's MPS if there
    is one.

    Under `torchrun` the processes find each other by its environment, and those of one machine
    share its `threads`.

    Raises:
        UserError: the device named does not exist, or cannot compute in the precision asked for.
    """
    torch.set_num_threads(max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    torch.manual_seed(seed)
    device = _device()
    quicker = bfloat16_is_quicker(device)
    if precision == "bfloat16" and device.type == "cuda" and not quicker:
        raise UserError(f"runtime.precision: {device} has no bfloat16; use float32 or auto")
    half = precision == "bfloat16" or (precision == "auto" and quicker)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(distributed.destroy_process_group)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    plain = device.type == "cpu" and world_size == 1 and not compile
    return Runtime(
        device=device,
        dtype=torch.bfloat16 if half else torch.float32,
        compile=compile,
        rank=int(os.environ.get("RANK", "0")),
        world_size=world_size,
        seed=seed,
        launch=launch,
        small_model_workers=Workers(threads) if plain else ALONE,
    )


def bfloat16_is_quicker(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32, by a rule from the hardware: never by a timing,
    so that one machine always gives the same bytes.

    A GPU needs it in hardware, a CPU needs AMX. With `avx512_bf16` alone (AMD Zen 4 and 5, many
    clouds) the conversions cost more than the products gain (docs/speed.md).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))


_compiled: Callable[[Any], Any] = cache(torch.compile)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block, the former mode after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _device() -> torch.device:
    name = os.environ.get("GPTMILL_DEVICE") or _best_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"GPTMILL_DEVICE is '{name}', which is not a device: {first_line(error)}"
        ) from None
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not there.get(device.type, lambda: True)():
        raise UserError(
            f"GPTMILL_DEVICE is '{name}', but PyTorch sees no {device.type.upper()} device here"
        )
    if device.type == "mps" and "WORLD_SIZE" in os.environ:
        raise UserError("several processes need CUDA or the CPU: set GPTMILL_DEVICE to one of them")
    if name == "cuda":
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return device


def _best_device() -> str:
    """CUDA, else Apple's Metal (`mps`), else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
