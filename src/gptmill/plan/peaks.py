"""The peak of each stage: the moment of its work that holds most, over what its imports take."""

import math
from collections.abc import Mapping

from gptmill.data.corpus import BATCH_BYTES
from gptmill.data.duplicates import SKETCH_LIMIT
from gptmill.data.shards import AHEAD
from gptmill.export.parity import POSITIONS
from gptmill.model.config import GPT2Config
from gptmill.plan.activations import FLOAT, Compute, Kept
from gptmill.plan.disk import onnx_weights
from gptmill.plan.memory import (
    Memory,
    evaluation,
    export,
    generation,
    heaviest,
    sharing,
    token_bytes,
    training_moments,
)
from gptmill.plan.sizes import ModelSize, classifier_size, language_model_size
from gptmill.plan.workload import Workload, document_places, evaluation_places
from gptmill.runtime.session import BATCH_TOKENS
from gptmill.tracking.address import is_server, tracking_address
from gptmill.tracking.courier import LONG_SECONDS

TABLE = 6  # times its text that a table of rows takes, in pandas and in lists
SKETCH = 64  # bytes of a sampled shingle while duplicates are looked for: sorted, ranked, copied
WORD = 5.5  # characters
TEXT_COPIES = 4  # a batch of texts as it is read, cleaned, split and encoded
MERGE = 400  # bytes of an entry of a byte-pair vocabulary, in its tables
TFIDF = 60  # bytes of a token in the baseline's sparse matrix of words and pairs, and its words
CASES = 3  # models that the study compares
PASSAGES = 32  # texts that stages.export_onnx measures each language model on, at most,
PASSAGE_TOKENS = 8192  # and the tokens of held-out text that it takes them from

# What each stage's process imports.
GROUPS = {
    "download": ("python", "numbers", "tables"),
    "tokenize": ("python", "numbers"),
    "pretrain": ("python", "numbers", "torch", "training"),
    "study": ("python", "numbers", "torch", "training", "matplotlib"),
    "load_gpt2": ("python", "numbers", "torch"),
    "prepare_classification": ("python", "numbers", "tables"),
    "finetune_classifier": ("python", "numbers", "tables", "torch", "training", "sklearn"),
    "prepare_instructions": ("python", "numbers"),
    "finetune_instructions": ("python", "numbers", "torch", "training"),
    "respond": ("python", "numbers", "torch", "judge"),
    "export_onnx": ("python", "numbers", "tables", "torch", "onnx"),
    "judge": ("python", "numbers", "judge"),
    "report": ("python", "report"),
}


def groups(stage: str, seconds: float = math.inf) -> tuple[str, ...]:
    """What a stage that works so long imports: a quick one leaves its journal to the last stage,
    unless a tracking server waits for it."""
    own = GROUPS[stage.split("@")[0]]
    delivers = seconds >= LONG_SECONDS or stage == "report" or is_server(tracking_address())
    return (*own, "tracking") if delivers else own


def stage_peaks(
    work: Workload,
    base: Mapping[str, int],
    compute: Compute,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Memory]:
    """Each stage of dvc.yaml, by its name there, in its order.

    Args:
        base: bytes that each group of libraries adds to a process.
        seconds: how long each stage works; without it each is taken for a long one.
    """
    named = {
        "download@corpus": 0,
        "download@classification": TABLE * work.counts.messages.sample.bytes,
        "download@instructions": TABLE * work.counts.entries.sample.bytes,
    }
    peaks = {name: Memory(data=size) for name, size in named.items()}
    peaks |= {
        "tokenize": Memory(data=_tokenizing(work)),
        "pretrain": pretrain_peak(work, compute),
        "study": Memory(
            weights=CASES * language_model_size(work.pretrained).weights,
            data=token_bytes(16 * work.parameters.study.tokens),
        ),
        **{f"load_gpt2@{task}": _loading(work, task, compute) for task in work.foundations},
        "prepare_classification": Memory(data=TABLE * work.counts.messages.sample.bytes),
        "finetune_classifier": classifier_peak(work, compute),
        "prepare_instructions": Memory(data=TABLE * work.counts.entries.sample.bytes),
        "finetune_instructions": instructions_peak(work, compute),
        "respond": _responding(work, compute),
        "export_onnx": _exporting(work, compute),
        "judge": Memory(),
        "report": Memory(),
    }
    long = dict.fromkeys(peaks, math.inf)
    used = {name: groups(name, (seconds or long)[name]) for name in peaks}
    return {
        name: Memory(**{**vars(memory), "base": sum(base[group] for group in used[name])})
        for name, memory in peaks.items()
    }


def pretrain_peak(work: Workload, compute: Compute) -> Memory:
    """Steps, the curve's evaluations, samples, and the final figure with longer contexts."""
    section, config = work.parameters.pretrain, work.pretrained
    size = language_model_size(config, section.optimizer)
    kept = Kept(config.layers, config.vocabulary_size)
    moments = training_moments(size, config, work.pretrain.largest, compute, kept)
    return heaviest(
        moments
        | {
            "evaluation": _evaluating(size, config, evaluation_places("pretrain", work), compute),
            "sample": _writing(
                size, config, 1, len(section.prompt) + 1, section.sampling.max_new_tokens
            ),
        }
    )


def classifier_peak(work: Workload, compute: Compute) -> Memory:
    """Steps, evaluations, and the baseline at the end."""
    section, config = work.parameters.finetune_classifier, work.foundations["classifier"].config
    size = classifier_size(config, section.trainable, section.lora, section.optimizer)
    blocks = {"head": 0, "last_block": 1, "last_two_blocks": 2}.get(
        section.trainable, config.layers
    )
    rank = section.lora.rank if section.trainable == "lora" else 0
    kept = Kept(min(blocks, config.layers), 0, rank, section.trainable == "all")
    moments = training_moments(size, config, work.classifier.largest, compute, kept)
    rows = work.counts.messages
    tokens = sum(rows.count[split] * float(rows.lengths[split].mean()) for split in rows.count)
    data = round(token_bytes(round(tokens)) + TABLE * rows.sample.bytes * _kept_share(work))
    held = {name: _with_data(memory, data) for name, memory in moments.items()}
    evaluating = _evaluating(size, config, evaluation_places("classifier", work), compute)
    baseline = Memory(
        weights=size.weights, optimizer=size.optimizer, best=size.state_dict,
        data=data + round(TFIDF * tokens),
    )  # fmt: skip
    return heaviest(held | {"evaluation": _with_data(evaluating, data), "baseline": baseline})


def instructions_peak(work: Workload, compute: Compute) -> Memory:
    """Steps and evaluations."""
    section = work.parameters.finetune_instructions
    config = work.foundations["instructions"].config
    size = language_model_size(config, section.optimizer)
    kept = Kept(config.layers, config.vocabulary_size)
    moments = training_moments(size, config, work.instructions.largest, compute, kept)
    rows = work.counts.entries
    tokens = sum(rows.count[split] * float(rows.lengths[split].mean()) for split in rows.count)
    data = token_bytes(round(tokens)) + TABLE * rows.sample.bytes
    moments["evaluation"] = _evaluating(
        size, config, evaluation_places("instructions", work), compute
    )
    return heaviest({name: _with_data(memory, data) for name, memory in moments.items()})


def _evaluating(
    size: ModelSize, config: GPT2Config, places: tuple[int, int], compute: Compute
) -> Memory:
    activations, logits = evaluation(config, *places, compute)
    at_once = sharing(size, config, compute, training=False)
    return Memory(
        weights=size.weights, optimizer=size.optimizer, best=size.state_dict,
        activations=at_once * activations, logits=at_once * logits,
    )  # fmt: skip


def _writing(size: ModelSize, config: GPT2Config, rows: int, prompt: int, new: int) -> Memory:
    cache, logits = generation(config, rows, min(prompt, config.context_length), new)
    return Memory(
        weights=size.weights, optimizer=size.optimizer, best=size.state_dict * bool(size.trained),
        logits=logits, parts={"cache": cache},
    )  # fmt: skip


def _tokenizing(work: Workload) -> int:
    """Batches of text with their tokens, the sketches of duplicates, and the vocabulary."""
    corpus = work.counts.corpus
    batches = AHEAD * work.parameters.runtime.threads
    characters = min(corpus.sample.bytes, batches * BATCH_BYTES)
    drawn = work.parameters.download.corpus.source == "embedded"  # never looked at for duplicates
    sketches = 0 if drawn else SKETCH * min(SKETCH_LIMIT, corpus.sample.bytes / WORD)
    text = TEXT_COPIES * characters + token_bytes(round(characters / corpus.token_bytes))
    return round(text + sketches + MERGE * corpus.vocabulary)


def _loading(work: Workload, task: str, compute: Compute) -> Memory:
    """The perplexity of held-out text at the model's own context."""
    config = work.foundations[task].config
    size = language_model_size(config)
    places, copies = document_places(work, config.context_length)
    section = getattr(work.parameters.load_gpt2, task)
    places = min(places, max(config.context_length, 2 * section.evaluation_tokens))
    activations, logits = evaluation(config, places, copies, compute)
    at_once = sharing(size, config, compute, training=False)
    return Memory(weights=size.weights, activations=at_once * activations, logits=at_once * logits)


def _responding(work: Workload, compute: Compute) -> Memory:
    """As many batches at once as there are workers."""
    section, config = work.parameters.respond, work.foundations["instructions"].config
    rows = min(section.batch_size, work.counts.entries.count["test"])
    prompt = int(work.counts.entries.prompts.max(initial=1))
    size = language_model_size(config)
    rows *= sharing(size, config, compute, training=False)
    return _writing(size, config, rows, prompt, section.sampling.max_new_tokens)


def _exporting(work: Workload, compute: Compute) -> Memory:
    """The largest of the three models is written in one piece, or measured: PyTorch's weights
    beside those of every variant in ONNX Runtime, which holds them as they lie in the file and
    arranged for its kernels, and the caches of all of them while they continue passages together;
    of small models as many at once as there are workers.

    The test's messages wait meanwhile, and what ONNX Runtime once took for a batch it keeps.
    """
    configs = [work.pretrained, *(found.config for found in work.foundations.values())]
    config = max(configs, key=lambda config: language_model_size(config).weights)
    size, rows = language_model_size(config), work.counts.messages
    tokens = rows.count["test"] * float(rows.lengths["test"].mean())
    data = round(TABLE * rows.sample.bytes * _kept_share(work) / 2 + token_bytes(round(tokens)))
    activations, _ = evaluation(config, BATCH_TOKENS, 0, Compute(half=False))
    scores = FLOAT * BATCH_TOKENS * work.classifier.largest.tokens * config.heads
    written = Memory(weights=size.weights, data=data, parts={"copies": export(size)})
    variants = work.parameters.export_onnx.quantization
    at_once = min(len(configs), sharing(size, config, compute, training=False))
    measured = Memory(
        weights=at_once * size.weights,
        data=data,
        activations=at_once * (1 + len(variants)) * (activations + scores),
        parts={
            "ONNX Runtime": at_once * 2 * onnx_weights(config, variants),
            "caches": at_once * _continued_caches(work),
        },
    )
    return heaviest({"written": written, "measured": measured})


def _continued_caches(work: Workload) -> int:
    """Keys and values of PyTorch and of every ONNX folder, which returns a longer cache while it
    still reads the shorter one; of the language model or of the instruction model."""
    texts, entries = work.counts.corpus.held_out_lengths, work.counts.entries
    continued = [
        (work.pretrained, held_out_passages(work), int(texts.max()) // 2),
        (
            work.foundations["instructions"].config,
            min(PASSAGES, entries.count["test"]),
            int(entries.prompts.max(initial=1)),
        ),
    ]
    return max(_continued_cache(work, *found) for found in continued)


def held_out_passages(work: Workload) -> int:
    """Documents in the tokens that the export takes."""
    mean = float(work.counts.corpus.held_out_lengths.mean())
    return min(PASSAGES, math.ceil(PASSAGE_TOKENS / mean))


def _continued_cache(work: Workload, config: GPT2Config, passages: int, prompt: int) -> int:
    section = work.parameters.export_onnx
    prompt = min(prompt, config.context_length // 2)
    needed = min(prompt + section.greedy_steps, config.context_length)
    rows = min(passages, max(1, POSITIONS // needed))
    one, _ = generation(config, rows, prompt, section.greedy_steps)
    folders = 1 + len(section.quantization)
    return one + 2 * folders * 2 * config.layers * rows * needed * config.width * FLOAT


def _kept_share(work: Workload) -> float:
    """Of the raw messages, after balancing."""
    rows = work.counts.messages
    return min(1.0, sum(rows.count.values()) / max(1, rows.sample.items))


def _with_data(memory: Memory, data: int) -> Memory:
    return Memory(**{**vars(memory), "data": memory.data + data})
