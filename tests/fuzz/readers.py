"""Every reader of a file that somebody else may have made, with a small valid file for each."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st

from gptmill import params
from gptmill.card import ModelCard
from gptmill.data.cleaning import clean_gutenberg
from gptmill.data.corpus import documents
from gptmill.data.instructions import read_instructions
from gptmill.data.own_corpus import write_own_corpus
from gptmill.data.own_files import LeftOut
from gptmill.data.own_instructions import write_own_instructions
from gptmill.data.own_labeled import write_own_labeled
from gptmill.data.shards import write_tokens
from gptmill.data.splits import plan_splits
from gptmill.data.tokens import TokenSplit
from gptmill.evaluate.fewshot import read_task
from gptmill.export.gguf import export_gguf
from gptmill.export.onnx import export_language_model
from gptmill.fetch.archive import member_sha256
from gptmill.fetch.manifest import RemoteFile, destination_names, read_manifest
from gptmill.judge.answers import read_answers
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.runtime.session import Generator
from gptmill.search.cases import read_sweep
from gptmill.search.search import read_search
from gptmill.tokenizer import load_tokenizer, train_byte_pairs
from gptmill.versions import packages
from gptmill.weights.folder import load_language_model, save_model
from gptmill.weights.openai import load_openai
from gptmill.weights.safetensors import SafetensorsFolder
from tests.support.damage import damaged_bytes, damaged_json
from tests.support.unsealed import unsealed

OPENAI = Path("tests/reference/golden/tensorflow_gpt2")
TEXT = "the quick brown fox jumps over the lazy dog. " * 4
ENTRY = {"instruction": "Say it.", "input": "", "output": "It."}
GUTENBERG = (
    "The Project Gutenberg eBook of Nothing\r\n\r\nTitle: Nothing\r\n\r\n"
    "*** START OF THE PROJECT GUTENBERG EBOOK NOTHING ***\r\n\r\n"
    + "It was a dark night, and nothing stirred.\r\n" * 40
    + "\r\n*** END OF THE PROJECT GUTENBERG EBOOK NOTHING ***\r\nSection 1. License\r\n"
)
TURNS = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]
MESSAGES = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]


@dataclass(frozen=True)
class Reader:
    """`read` takes a folder that `make` filled and in which `file` was damaged."""

    name: str
    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]

    @property
    def is_json(self) -> bool:
        return self.file.endswith(".json") or self.name in ("sweep", "search")


def damaged(reader: Reader, folder: Path) -> st.SearchStrategy[bytes]:
    """Damaged contents of the reader's file, which is whole in `folder`."""
    data = (folder / reader.file).read_bytes()
    return damaged_json(json.loads(data)) if reader.is_json else damaged_bytes(data)


def model_folder(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_byte_pairs([TEXT], 280)
    model = GPT2(GPT2Config(tokenizer.vocabulary_size, 8, 1, 2, 8))
    save_model(folder, model, tokenizer, provenance={"made": "here"})
    unsealed(folder)


def open_model(folder: Path) -> None:
    ModelCard.read(folder)
    load_language_model(folder)


def sharded_folder(folder: Path) -> None:
    model_folder(folder)
    names = SafetensorsFolder(folder).shapes
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def token_folder(folder: Path) -> None:
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(12):
        (corpus / f"{number}.txt").write_text(TEXT + str(number))
    tokenizer = train_byte_pairs([TEXT], 280)
    plan = plan_splits(corpus, validation_fraction=0.2, test_fraction=0.2, seed=0)
    write_tokens(plan, tokenizer, folder / "tokens", shard_tokens=64)
    unsealed(folder)


def read_tokens(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        tokens = TokenSplit(folder / "tokens", split)
        tokens.gather(np.array([0]), min(4, len(tokens)))
        tokens.texts(load_tokenizer(folder / "tokens/tokenizer"), 2)


def openai_folder(folder: Path) -> None:
    for path in OPENAI.iterdir():
        shutil.copy(path, folder)
    tokenizer = train_byte_pairs([TEXT], 280)
    tokenizer.save(folder)
    shutil.move(folder / "vocab.json", folder / "encoder.json")
    shutil.move(folder / "merges.txt", folder / "vocab.bpe")


def onnx_folder(folder: Path) -> None:
    model_folder(folder)
    export_language_model(folder, folder / "onnx", opset=20)
    unsealed(folder)


def write_gguf(folder: Path) -> None:
    export_gguf(folder, folder / "model.gguf")


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "some.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SMSSpamCollection", "ham\tHello\n" * 20)


def text_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, newline="")


def copy_of(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(Path(name).read_bytes())


def json_file(name: str, value: object) -> Callable[[Path], object]:
    return text_file(name, json.dumps(value))


def parquet_file(name: str, rows: list[dict]) -> Callable[[Path], object]:
    return lambda folder: pd.DataFrame(rows).to_parquet(folder / name)


def own_labeled(name: str) -> Callable[[Path], object]:
    return lambda folder: write_own_labeled(
        [folder / name], folder / "out/x.csv", text="", label="", encoding="", left_out=LeftOut()
    )


def own_instructions(name: str) -> Callable[[Path], object]:
    return lambda folder: write_own_instructions(
        [folder / name], folder / "out/x.json", encoding="", left_out=LeftOut()
    )


def own_corpus(name: str, text: str = "") -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        taken = {"text": text, "encoding": "", "separator": "<|endoftext|>"}
        write_own_corpus([folder / name], folder / "out", **taken, left_out=LeftOut())
        list(documents(folder / "out"))

    return read


LAYOUTS = [ENTRY, {"messages": MESSAGES}, {"conversations": TURNS}]
LAYOUTS += [{"prompt": "a", "completion": "b"}]
MANIFEST = [{"url": "http://x/a.txt", "bytes": 3, "sha256": "0" * 64}]
TASK = '{"text": "good", "label": "yes"}\n{"text": "bad", "label": "no"}\n'
ROWS = [{"text": f"a text of number {n}", "label": "spam" if n % 3 else "ham"} for n in range(9)]
SMS = RemoteFile("http://x/some.zip", 1, "0" * 64, "SMSSpamCollection", "0" * 64)
SWEEP = {"name": "a", "cases": {"b": {"pretrain.steps": 3}}, "seeds": [1, 2]}
RATE = "pretrain.optimizer.learning_rate"
SEARCH = {
    "objective": "pretrain:validation/loss", "direction": "minimize",
    "space": {RATE: {"low": 1e-4, "high": 1e-2, "log": True}},
}  # fmt: skip

READERS = [
    Reader(
        "params.yaml",
        "params.yaml",
        copy_of("params.yaml"),
        lambda f: params.load(f / "params.yaml"),
    ),
    Reader(
        "versions.yaml",
        "versions.yaml",
        copy_of("versions.yaml"),
        lambda f: packages(f / "versions.yaml"),
    ),
    Reader(
        "sweep",
        "sweep.yaml",
        json_file("sweep.yaml", SWEEP),
        lambda f: read_sweep(f / "sweep.yaml"),
    ),
    Reader(
        "search",
        "search.yaml",
        json_file("search.yaml", SEARCH),
        lambda f: read_search(f / "search.yaml", params.read_yaml(params.PARAMS_FILE)),
    ),
    Reader(
        "manifest",
        "m.json",
        json_file("m.json", MANIFEST),
        lambda f: destination_names(read_manifest(f / "m.json")),
    ),
    Reader("zip", "some.zip", zipped, lambda f: member_sha256(SMS, f / "some.zip")),
    Reader(
        "Gutenberg",
        "book.txt",
        text_file("book.txt", GUTENBERG),
        lambda f: clean_gutenberg((f / "book.txt").read_bytes().decode("utf-8", "replace")),
    ),
    Reader("own text", "own.txt", text_file("own.txt", TEXT), own_corpus("own.txt")),
    Reader(
        "own text, JSONL",
        "own.jsonl",
        text_file("own.jsonl", json.dumps({"text": TEXT}) + "\n"),
        own_corpus("own.jsonl", "text"),
    ),
    Reader(
        "own labels, CSV",
        "own.csv",
        text_file("own.csv", pd.DataFrame(ROWS).to_csv(index=False)),
        own_labeled("own.csv"),
    ),
    Reader(
        "own labels, TSV",
        "own.tsv",
        text_file("own.tsv", pd.DataFrame(ROWS).to_csv(sep="\t", index=False)),
        own_labeled("own.tsv"),
    ),
    Reader("own labels, JSON", "own.json", json_file("own.json", ROWS), own_labeled("own.json")),
    Reader(
        "own labels, Parquet",
        "own.parquet",
        parquet_file("own.parquet", ROWS),
        own_labeled("own.parquet"),
    ),
    Reader(
        "own instructions", "own.json", json_file("own.json", LAYOUTS), own_instructions("own.json")
    ),
    Reader(
        "instruction entries",
        "entries.json",
        json_file("entries.json", [ENTRY] * 3),
        lambda f: read_instructions(f / "entries.json"),
    ),
    Reader(
        "answers",
        "responses.json",
        json_file("responses.json", [ENTRY | {"response": "It."}] * 2),
        read_answers,
    ),
    Reader(
        "task file",
        "task.jsonl",
        text_file("task.jsonl", TASK),
        lambda f: read_task(f / "task.jsonl"),
    ),
    Reader("config.json", "config.json", model_folder, open_model),
    Reader("generation_config.json", "generation_config.json", model_folder, ModelCard.read),
    Reader(
        "tokenizer.json", "tokenizer.json", model_folder, lambda f: load_tokenizer(f).encode(TEXT)
    ),
    Reader(
        "tokenizer_config.json",
        "tokenizer_config.json",
        model_folder,
        lambda f: load_tokenizer(f).encode(TEXT),
    ),
    Reader("model.safetensors", "model.safetensors", model_folder, load_language_model),
    Reader(
        "model.safetensors.index.json",
        "model.safetensors.index.json",
        sharded_folder,
        load_language_model,
    ),
    *(
        Reader(f"OpenAI checkpoint, {name}", name, openai_folder, load_openai)
        for name in ("hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001")
    ),
    Reader("model.onnx", "onnx/model.onnx", onnx_folder, lambda f: Generator(f / "onnx", 1)),
    Reader("GGUF out", "model.safetensors", model_folder, write_gguf),
    Reader("token shard", "tokens/train/00000.bin", token_folder, read_tokens),
    Reader("token index", "tokens/index.json", token_folder, read_tokens),
    Reader("token sidecar", "tokens/train/documents.npy", token_folder, read_tokens),
]
