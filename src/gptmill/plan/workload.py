"""What each training stage will do: architectures, batches, steps, from parameters and counts.

Everything here is arithmetic on what is known; nothing is measured.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from gptmill.engine.batches import ShuffledBatches
from gptmill.model.config import GPT2Config
from gptmill.params import Foundation, Parameters, Training
from gptmill.plan.counts import Counts
from gptmill.plan.foundations import Architecture, architecture
from gptmill.plan.memory import Shape
from gptmill.tasks import classify, instruct
from gptmill.tasks.language_model import EVALUATION_TOKENS


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        largest: the micro-batch that takes most memory.
        tokens: mean width of a micro-batch, padding included.
        steps: optimizer steps.
        evaluations: how often the curve's point is measured, the start included.
        evaluated: tokens of one such point, padding included.
        saves: resumable checkpoints.
    """

    largest: Shape
    tokens: int
    steps: int
    evaluations: int
    evaluated: int
    saves: int

    @property
    def typical(self) -> Shape:
        """A micro-batch of the mean width."""
        return replace(self.largest, tokens=self.tokens)


@dataclass(frozen=True)
class Workload:
    """The whole pipeline's: three architectures and three trainings."""

    parameters: Parameters
    counts: Counts
    start: Architecture | None  # of pretraining, if a foundation is continued
    pretrained: GPT2Config
    foundations: dict[str, Architecture]  # of the fine-tunings
    pretrain: Run
    classifier: Run
    instructions: Run

    @property
    def assumed(self) -> list[str]:
        """What was taken for granted, in words."""
        starts = [*self.foundations.values(), *([self.start] if self.start else [])]
        said = [start.assumed for start in starts if start.assumed]
        return list(dict.fromkeys([*self.counts.assumed, *said]))


def workload(parameters: Parameters, counts: Counts) -> Workload:
    """Architectures, batches and steps of every training.

    Raises:
        UserError: a foundation's configuration is not GPT-2's.
    """
    section = parameters.pretrain
    start, foundation = None, section.foundation
    if foundation.source == "none":
        pretrained = GPT2Config(counts.corpus.vocabulary, **dict(section.model))
    else:
        start = architecture(foundation.source, foundation.location, foundation.revision)
        pretrained = replace(start.config, dropout=section.model.dropout)
    sections = {
        task: getattr(parameters.load_gpt2, task) for task in ("classifier", "instructions")
    }
    foundations = {task: _foundation(found, pretrained) for task, found in sections.items()}
    return Workload(
        parameters,
        counts,
        start,
        pretrained,
        foundations,
        pretrain_run(parameters, counts),
        classifier_run(parameters, counts, foundations["classifier"].config.context_length),
        instructions_run(parameters, counts, foundations["instructions"].config.context_length),
    )


def _foundation(section: Foundation, pretrained: GPT2Config) -> Architecture:
    found = architecture(section.source, section.location, section.revision, pretrained)
    if not section.context_length:
        return found
    return found._replace(config=replace(found.config, context_length=section.context_length))


def pretrain_run(parameters: Parameters, counts: Counts) -> Run:
    """Windows of the stream, or documents one to a row, longer ones in pieces."""
    section, corpus = parameters.pretrain, counts.corpus
    window, size = section.model.context_length, section.training.batch_size
    if section.rows == "windows":
        examples, widest, mean = max(1, corpus.tokens["train"] // window), window, window
    else:
        lengths = _pieces(corpus.lengths, window)
        per_document = len(lengths) / len(corpus.lengths)
        trained = corpus.documents * corpus.tokens["train"] / max(1, sum(corpus.tokens.values()))
        examples = max(1, round(trained * per_document))
        mean, widest = widths(lengths, size)
    micro_batches = section.epochs * -(-examples // size)
    steps = section.steps
    if section.epochs:
        steps = -(-micro_batches // section.training.accumulation)
    limit = min(section.evaluation_tokens, max(1, corpus.tokens["validation"]))
    return _run(section.training, steps, widest, mean, limit)


def classifier_run(parameters: Parameters, counts: Counts, context: int) -> Run:
    """Messages padded to the longest of their batch, or all to one length."""
    section = parameters.finetune_classifier
    lengths, limit = counts.messages.lengths, classifier_length(parameters, counts, context)
    size = section.training.batch_size
    mean, widest = widths(np.minimum(lengths["train"], limit), size)
    if section.readout == "padded_last":
        mean = widest = limit
    evaluated = counts.messages.count["validation"] * mean
    steps = _epochs(section.epochs, counts.messages.count["train"], section.training)
    return _run(section.training, steps, widest, mean, evaluated)


def classifier_length(parameters: Parameters, counts: Counts, context: int) -> int:
    """Tokens kept of a message."""
    section = parameters.finetune_classifier
    if section.readout == "first_token":
        return 1
    longest = int(counts.messages.lengths["train"].max())
    return min(section.maximum_length or longest, context)


def instructions_run(parameters: Parameters, counts: Counts, context: int) -> Run:
    """Entries padded to the longest of their batch; the last token is a target only."""
    section, entries = parameters.finetune_instructions, counts.entries
    limit = min(section.allowed_max_length or context + 1, context + 1)
    lengths = np.minimum(entries.lengths["train"], limit)
    mean, widest = widths(lengths, section.training.batch_size)
    evaluated = entries.count["validation"] * mean
    steps = _epochs(section.epochs, entries.count["train"], section.training)
    return _run(section.training, steps, max(1, widest - 1), max(1, mean - 1), evaluated)


def widths(lengths: np.ndarray, batch_size: int) -> tuple[int, int]:
    """Mean and largest width of the batches that `ShuffledBatches` makes of such lengths."""
    batches = ShuffledBatches(lengths.tolist(), max, batch_size, 0, lengths)
    found = [batches.next_batch() for _ in range(batches.batches_per_epoch)]
    return round(float(np.mean(found))), max(found)


def evaluation_places(run: str, work: Workload) -> tuple[int, int]:
    """Tokens in one forward pass without gradients, padding included, and logits of how many
    times they are held (`plan.memory.evaluation`)."""
    if run == "classifier":
        return classify.EVALUATION_BATCH * work.classifier.largest.tokens, 0
    if run == "instructions":
        return instruct.EVALUATION_BATCH * work.instructions.largest.tokens, 2
    return document_places(work, work.parameters.pretrain.model.context_length)


def document_places(work: Workload, window: int) -> tuple[int, int]:
    """The same for held-out documents: those that fit into the window are padded to the longest
    of their batch; longer ones slide, and their logits are laid out once more."""
    rows = max(1, EVALUATION_TOKENS // window)
    lengths = work.counts.corpus.held_out_lengths
    held_out = max(1, work.counts.corpus.tokens["validation"])
    if lengths.max() > window:
        return min(rows * window, max(window, held_out)), 3
    return min(rows, len(lengths)) * int(lengths.max()), 2


def _pieces(lengths: np.ndarray, window: int) -> np.ndarray:
    """Lengths of documents, those above the window cut."""
    whole = [np.full(int(length) // window, window) for length in lengths]
    rest = lengths % window
    return np.concatenate([*whole, rest[rest > 0]]).astype(np.int64)


def _epochs(epochs: int, examples: int, training: Training) -> int:
    micro_batches = epochs * math.ceil(examples / training.batch_size)
    return max(1, math.ceil(micro_batches / training.accumulation))


def _run(training: Training, steps: int, widest: int, mean: int, evaluated: int) -> Run:
    return Run(
        largest=Shape(training.batch_size, widest, training.accumulation),
        tokens=max(1, mean),
        steps=steps,
        evaluations=1 + math.ceil(steps / training.evaluate_every),
        evaluated=max(1, evaluated),
        saves=math.ceil(steps / training.save_every),
    )
