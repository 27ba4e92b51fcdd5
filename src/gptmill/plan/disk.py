"""Bytes on disk: what each stage leaves, DVC's copy of it, and what is fetched."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptmill.export.quantize import BLOCK
from gptmill.files import read_json
from gptmill.model.config import GPT2Config
from gptmill.plan.counts import GPT2_VOCABULARY, Rows
from gptmill.plan.sizes import FLOAT, ModelSize, classifier_size, language_model_size
from gptmill.plan.workload import Workload

DOCUMENT = 16  # bytes of a document in `documents.npy`
TOKENIZER_ENTRY = 70  # bytes of a token in vocab.json, merges.txt and tokenizer.json together
TRACKING = 20_000_000  # MLflow's database, samples and pictures of one execution
PICTURES = 3_000_000  # of the study and the report
GPT2_BPE_MANIFEST = Path("profiles/manifests/gpt2_bpe.json")


@dataclass(frozen=True)
class Disk:
    """Bytes of one stage.

    Attributes:
        outputs: under data/ or models/, which DVC's cache doubles.
        beside: what is kept elsewhere, once: downloads, plots, the weights of a finished training.
        passing: checkpoints that are gone when the stage has ended.
        fetched: through the network.
    """

    outputs: int = 0
    beside: int = 0
    passing: int = 0
    fetched: int = 0

    @property
    def kept(self) -> int:
        """What is there when the pipeline has ended."""
        return 2 * self.outputs + self.beside


def stage_disk(work: Workload) -> dict[str, Disk]:
    """Each stage of dvc.yaml."""
    counts, parameters = work.counts, work.parameters
    raw = {
        "corpus": counts.corpus,
        "classification": counts.messages,
        "instructions": counts.entries,
    }
    disk = {
        f"download@{name}": Disk(
            outputs=part.sample.bytes, beside=part.sample.download, fetched=part.sample.download
        )
        for name, part in raw.items()
    }
    split = round(counts.messages.sample.bytes * _share(counts.messages))
    models = _models(work)
    passing = _checkpoints(work)
    starts = {task: found.download for task, found in work.foundations.items()}
    begun = work.start.download if work.start else 0
    trained, tuned, followed = (
        models[stage] for stage in ("pretrain", "finetune_classifier", "finetune_instructions")
    )
    return disk | {
        "tokenize": Disk(outputs=_tokens(work), fetched=_tokenizer_files(work)),
        "pretrain": Disk(trained, begun + trained, passing["pretrain"], begun),
        "study": Disk(beside=PICTURES),
        **{
            f"load_gpt2@{task}": Disk(models[f"load_gpt2@{task}"], size, 0, size)
            for task, size in starts.items()
        },
        "prepare_classification": Disk(outputs=split),
        "finetune_classifier": Disk(tuned, tuned, passing["classifier"]),
        "prepare_instructions": Disk(outputs=counts.entries.sample.bytes),
        "finetune_instructions": Disk(followed, followed, passing["instructions"]),
        "respond": Disk(outputs=counts.entries.sample.bytes * counts.entries.count["test"]
                        // max(1, counts.entries.sample.items)),
        "export_onnx": Disk(outputs=sum(
            onnx_bytes(config, variants=parameters.export_onnx.quantization)
            for config in _exported(work)
        )),
        "judge": Disk(outputs=200 * counts.entries.count["test"]),
        "report": Disk(beside=PICTURES + TRACKING),
    }  # fmt: skip


def needed_disk(disk: Mapping[str, Disk]) -> int:
    """The most that lies there at once: all that is kept, and the largest checkpoint beside."""
    kept = sum(part.kept for part in disk.values())
    return kept + max(part.passing for part in disk.values())


def onnx_bytes(config: GPT2Config, variants: list[str]) -> int:
    """The ONNX folders of a model, tokenizers included."""
    return onnx_weights(config, variants) + (1 + len(variants)) * _tokenizer(config)


def onnx_weights(config: GPT2Config, variants: list[str]) -> int:
    """The plain model and its variants (`onnx.quantize`): blocks of weights share a float32 scale,
    columns of `dynamic8` do; the embedding, which may be the head, has 8 bits in all of them."""
    size = language_model_size(config)
    heads = size.embedding * (1 if config.tied_head else 2) // FLOAT
    matrices = size.matrices // FLOAT
    rest = size.weights - FLOAT * (heads + matrices)
    scale = FLOAT / BLOCK
    bits = {"weights8": 1 + scale, "weights4": 0.5 + scale, "dynamic8": 1.0}
    embedding = {"weights8": 1 + scale, "weights4": 1 + scale, "dynamic8": 1.0}
    small = (matrices * bits[name] + heads * embedding[name] + rest for name in variants)
    return size.weights + round(sum(small))


def _exported(work: Workload) -> list[GPT2Config]:
    return [work.pretrained, *(found.config for found in work.foundations.values())]


def _models(work: Workload) -> dict[str, int]:
    """Model folders: weights with zeros for what GPT-2 has and the model lacks, and tokenizer."""
    configs = {"pretrain": work.pretrained}
    for task, found in work.foundations.items():
        configs |= {f"load_gpt2@{task}": found.config, f"finetune_{task}": found.config}
    return {
        name: language_model_size(config).saved + _tokenizer(config)
        for name, config in configs.items()
    }


def _checkpoints(work: Workload) -> dict[str, int]:
    """Model, best weights and optimizer; the new one is written beside the last."""
    parameters, task = work.parameters, work.parameters.finetune_classifier
    sizes = {
        "pretrain": language_model_size(work.pretrained, parameters.pretrain.optimizer),
        "classifier": classifier_size(
            work.foundations["classifier"].config, task.trainable, task.lora, task.optimizer
        ),
        "instructions": language_model_size(
            work.foundations["instructions"].config, parameters.finetune_instructions.optimizer
        ),
    }
    return {name: 2 * checkpoint_bytes(size) for name, size in sizes.items()}


def checkpoint_bytes(size: ModelSize) -> int:
    """One resumable checkpoint: tied matrices are stored once, but apart in the best weights."""
    return size.weights + size.state_dict + size.optimizer


def _tokens(work: Workload) -> int:
    corpus = work.counts.corpus
    each = 2 if corpus.vocabulary <= 1 << 16 else 4
    total = sum(corpus.tokens.values())
    return total * each + DOCUMENT * corpus.documents + TOKENIZER_ENTRY * corpus.vocabulary


def _tokenizer(config: GPT2Config) -> int:
    return TOKENIZER_ENTRY * config.vocabulary_size


def _tokenizer_files(work: Workload) -> int:
    """GPT-2's own, where they are not at hand."""
    if work.counts.corpus.tokenizer is not None or work.counts.corpus.vocabulary < GPT2_VOCABULARY:
        return 0
    return sum(entry["bytes"] for entry in read_json(GPT2_BPE_MANIFEST))


def _share(rows: Rows) -> float:
    return min(1.0, sum(rows.count.values()) / max(1, rows.sample.items))
