"""What pretraining takes on many accelerators: memory, traffic, efficiency, time.

A step is shared out by rows, so a process has at least one of them. Formulas, with P parameters,
N processes and A micro-batches a step:

- Model states: 16 bytes a parameter in float32 with AdamW, in full under DDP, divided by N under
  FSDP2 (ZeRO, Rajbhandari et al. 2020, section 3.1, stage 3 in section 5.3).
- Traffic: DDP's ring sends 2·(N−1)/N·4·P bytes a step (Patarasuk & Yuan 2009). FSDP2 gathers the
  weights twice in each micro-batch and scatters gradients once a step: (N−1)/N·(2·A·b + 4)·P bytes
  at b bytes a weight (ZeRO, section 7.2).
- Seconds: FLOPs of PaLM's appendix B (Chowdhery et al. 2022) at an assumed share of the peak.
  Traffic hides behind the computation it runs beside: DDP's behind the last micro-batch's backward
  pass, two thirds of it (Li et al. 2020, section 3.2.3), FSDP2's behind all (Zhao et al. 2023,
  section 4.3).
"""

from dataclasses import dataclass, replace

from gptmill.errors import UserError
from gptmill.model.config import GPT2_SIZES, GPT2Config, flops_per_token, gpt2_config
from gptmill.params import Optimizer, Parameters
from gptmill.plan.activations import FLOAT, Compute, Kept
from gptmill.plan.counts import GPT2_VOCABULARY
from gptmill.plan.memory import Memory, Shape, evaluation, heaviest, training_moments
from gptmill.plan.sizes import ModelSize, language_model_size

GIGA, TERA = 10**9, 10**12
BACKWARD = 2 / 3  # of a step's computation
TOKENS_PER_PARAMETER = 20  # compute-optimal, Hoffmann et al. 2022


@dataclass(frozen=True)
class Accelerator:
    """A data sheet: bytes, bfloat16 FLOP/s of dense products, bytes a second in one direction to
    the others of its machine (`link`) and of other machines (`network`)."""

    name: str
    memory: float
    flops: float
    link: float
    network: float
    per_machine: int = 8


ACCELERATORS = {
    "h100": Accelerator("NVIDIA H100 SXM", 80 * GIGA, 989 * TERA, 450 * GIGA, 50 * GIGA),
    "a100": Accelerator("NVIDIA A100 SXM 80 GB", 80 * GIGA, 312 * TERA, 300 * GIGA, 25 * GIGA),
}


@dataclass(frozen=True)
class Share:
    """What each process holds, sends and computes.

    Attributes:
        rows, accumulation: of a micro-batch in one process; micro-batches a step.
        memory: bytes at the moment that holds most, without Python and its libraries.
        sent: bytes a step.
        seconds: of a step.
        efficiency: share of the step that computes.
        hours: of training on `TOKENS_PER_PARAMETER` tokens a parameter.
    """

    strategy: str
    rows: int
    accumulation: int
    memory: int
    sent: int
    seconds: float
    efficiency: float
    hours: float


@dataclass(frozen=True)
class ClusterPlan:
    """Models by name, and of each, by number of processes, its share; None: it does not fit."""

    accelerator: Accelerator
    batch: int
    mfu: float
    models: dict[str, tuple[GPT2Config, dict[int, Share | None]]]


def plan_cluster(
    parameters: Parameters,
    accelerator: Accelerator,
    processes: list[int],
    batch: int,
    mfu: float,
    strategy: str | None = None,
) -> ClusterPlan:
    """GPT-2's four sizes and the model of params.yaml.

    Args:
        batch: rows of a step in all processes together, each a whole context.
        mfu: share of the peak FLOP/s that one process alone would reach.
        strategy: DDP where it fits and FSDP2 elsewhere, if not given.

    Raises:
        UserError: more processes than rows, or a number that is not positive.
    """
    if batch < max(processes) or min(processes) < 1 or not 0 < mfu <= 1:
        raise UserError(
            f"{max(processes)} processes share {batch} rows a step, and each needs one: raise "
            "--batch (and give --mfu a share between 0 and 1)"
        )
    section, tokens = parameters.pretrain, parameters.tokenize
    vocabulary = GPT2_VOCABULARY if tokens.kind == "gpt2" else tokens.vocabulary_size
    own = GPT2Config(vocabulary, **dict(section.model))
    models = {name: gpt2_config(name) for name in GPT2_SIZES} | {"params.yaml": own}
    tried = [strategy] if strategy else ["ddp", "fsdp2"]

    def best(config: GPT2Config, count: int) -> Share | None:
        # GPT-2 was trained with AdamW; the project's own model has its own optimizer.
        adamw = section.optimizer.model_copy(update={"muon": 0.0})
        optimizer = section.optimizer if config is own else adamw
        arguments = (config, optimizer, count, batch, accelerator, mfu)
        shares = (share(name, *arguments) for name in tried)
        return next((found for found in shares if found is not None), None)

    return ClusterPlan(
        accelerator, batch, mfu,
        {name: (config, {count: best(config, count) for count in processes})
         for name, config in models.items()},
    )  # fmt: skip


def share(
    strategy: str,
    config: GPT2Config,
    optimizer: Optimizer,
    processes: int,
    batch: int,
    accelerator: Accelerator,
    mfu: float,
) -> Share | None:
    """The largest micro-batch that fits the accelerator, in bfloat16; None if none does."""
    size, compute = language_model_size(config, optimizer), Compute(half=True, device="cuda")
    rows = -(-batch // processes)
    while rows:
        shape = Shape(rows, config.context_length, -(-batch // (processes * rows)))
        memory = memory_of(size, config, shape, compute, strategy, processes).total
        if memory <= accelerator.memory:
            break
        rows //= 2
    else:
        return None
    sent = traffic(size, strategy, processes, shape.accumulation, compute, bool(optimizer.muon))
    flops = flops_per_token(config, shape.tokens) * shape.places
    micro_batch = flops / (mfu * accelerator.flops)
    computed = shape.accumulation * micro_batch
    apart = processes > accelerator.per_machine
    transfer = sent / (accelerator.network if apart else accelerator.link)
    hidden = BACKWARD * micro_batch if strategy == "ddp" else computed
    seconds = computed + max(0.0, transfer - hidden)
    steps = TOKENS_PER_PARAMETER * size.parameters / (batch * config.context_length)
    return Share(
        strategy, rows, shape.accumulation, memory, sent, seconds, computed / seconds,
        steps * seconds / 3600,
    )  # fmt: skip


def memory_of(
    size: ModelSize,
    config: GPT2Config,
    shape: Shape,
    compute: Compute,
    strategy: str,
    processes: int,
) -> Memory:
    """The moment of a process that holds most, without Python and its libraries."""
    kept = Kept(config.layers, config.vocabulary_size)
    moments = training_moments(size, config, shape, compute, kept)
    if strategy == "fsdp2":
        held = {"gathered": gathered(size, config, shape, compute)}
        moments = {name: _divided(moment, processes, held) for name, moment in moments.items()}
        whole = {"gathered": size.weights}
    else:
        held = {"buckets": size.gradients}
        moments = {name: replace(moment, parts=held) for name, moment in moments.items()}
        whole = dict(held)
    activations, logits = evaluation(config, shape.places, 2, compute)
    states = Memory(
        weights=size.weights, optimizer=size.optimizer, best=size.state_dict,
        activations=activations, logits=logits,
    )  # fmt: skip
    sharded = _divided(states, processes, whole) if strategy == "fsdp2" else states
    return heaviest(moments | {"evaluation": replace(sharded, parts=whole)})


def _divided(moment: Memory, processes: int, parts: dict[str, int]) -> Memory:
    """A moment whose model states are shared out."""
    return replace(
        moment,
        weights=-(-moment.weights // processes),
        gradients=-(-moment.gradients // processes),
        optimizer=-(-moment.optimizer // processes),
        best=-(-moment.best // processes),
        parts=parts,
    )


def gathered(size: ModelSize, config: GPT2Config, shape: Shape, compute: Compute) -> int:
    """Weights that FSDP2 holds whole: what is outside of blocks, the block that computes and the
    next one; gradients of one block, and of all where micro-batches are added up first."""
    block = 12 * config.width**2
    outside = size.parameters - config.layers * block
    gradients = size.gradients if shape.accumulation > 1 else FLOAT * (block + outside)
    return compute.product * (2 * block + outside) + gradients


def traffic(
    size: ModelSize,
    strategy: str,
    processes: int,
    accumulation: int,
    compute: Compute,
    muon: bool = False,
) -> int:
    """Bytes that each process sends in a step. Muon gathers the matrices it makes orthogonal."""
    others = (processes - 1) / processes
    if strategy == "ddp":
        return round(2 * others * size.gradients)
    weights = 2 * accumulation * compute.product * size.parameters
    return round(others * (weights + size.gradients + muon * size.matrices))
