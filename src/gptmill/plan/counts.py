"""From samples to counts: tokens, rows and lengths of the whole, by the stages' own code."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gptmill.data import classification, instructions
from gptmill.data.corpus import SPLITS
from gptmill.data.shards import write_tokens
from gptmill.data.splits import plan_splits
from gptmill.data.tokenizers import GPT2_MANIFEST, make_tokenizer
from gptmill.data.tokens import TokenSplit
from gptmill.errors import UserError
from gptmill.fetch.download import fetch
from gptmill.files import read_json, state_root
from gptmill.params import Parameters
from gptmill.plan.sample import Sample, draw
from gptmill.prompt import format_prompt, format_response
from gptmill.tasks.classify_report import tfidf_baseline
from gptmill.tasks.instruct import encode_entries
from gptmill.tokenizer import Tokenizer, load_gpt2_files, load_tokenizer

GPT2_VOCABULARY = 50257
CHARACTERS = 100  # of a text that nobody has seen
# Distinct words grow more slowly than a text (Heaps 1978, exponent near 0.7), and learning merges
# walks through distinct words.
HEAPS = 0.7
RAREST = 0.13  # share of two labels' rarer, of texts that nobody has seen
# Standard normal quantiles: lengths of short texts are about log-normal, with this deviation.
DEVIATION, QUANTILES = 0.5, np.sort(np.random.default_rng(0).standard_normal(1000))


@dataclass(frozen=True)
class Corpus:
    """The text to pretrain on.

    Attributes:
        vocabulary: tokens that the tokenizer will have.
        tokens: in each split.
        documents: in all.
        lengths: tokens of some documents, [N].
        token_bytes: UTF-8 bytes of a token.
        seconds: what tokenizing takes here.
    """

    sample: Sample
    tokenizer: Tokenizer | None
    vocabulary: int
    tokens: dict[str, int]
    documents: int
    lengths: np.ndarray
    token_bytes: float
    seconds: float

    @property
    def held_out_lengths(self) -> np.ndarray:
        """Tokens of documents of the validation split, [N]: of a corpus with fewer documents than
        splits it is one piece."""
        if self.documents < len(SPLITS):
            return np.array([max(1, self.tokens["validation"])])
        return self.lengths


@dataclass(frozen=True)
class Rows:
    """Examples of a fine-tuning: how many in each split, and the tokens of some, [N] by split.

    `prompts` and `answers` are those of instructions to be answered; `baseline` is the seconds
    that TF-IDF and logistic regression take on the messages.
    """

    sample: Sample
    count: dict[str, int]
    lengths: dict[str, np.ndarray]
    prompts: np.ndarray = field(default_factory=lambda: np.zeros(0))
    answers: np.ndarray = field(default_factory=lambda: np.zeros(0))
    baseline: float = 0.0


@dataclass(frozen=True)
class Counts:
    """The three datasets."""

    corpus: Corpus
    messages: Rows
    entries: Rows

    @property
    def assumed(self) -> list[str]:
        """What was taken for granted, in words."""
        samples = (part.sample for part in (self.corpus, self.messages, self.entries))
        found = [sample.assumed for sample in samples if sample.assumed]
        if self.corpus.tokenizer is None:
            found.append(
                f"tokenizer: not at hand, {self.corpus.token_bytes:.1f} bytes a token and "
                f"{self.corpus.vocabulary:,} tokens assumed"
            )
        return found


def count(parameters: Parameters, fine_tuned: Tokenizer | None = None) -> Counts:
    """Draw the samples and count; nothing is downloaded and nothing stays on disk.

    Args:
        fine_tuned: the foundation's tokenizer, where it is not the corpus's.
    """
    with TemporaryDirectory() as temporary:
        folders = {
            name: Path(temporary) / name for name in ("corpus", "classification", "instructions")
        }
        for folder in folders.values():
            folder.mkdir()
        sections = parameters.download
        samples = {name: draw(name, getattr(sections, name), folders[name]) for name in folders}
        corpus = _corpus(parameters, samples["corpus"], Path(temporary) / "tokens")
        tokenizer, token_bytes = fine_tuned or corpus.tokenizer, corpus.token_bytes
        return Counts(
            corpus,
            _messages(parameters, samples["classification"], tokenizer, token_bytes),
            _entries(parameters, samples["instructions"], tokenizer, token_bytes),
        )


def gpt2_tokenizer() -> Tokenizer | None:
    """GPT-2's byte pairs, where the cache or a mirror folder has them."""
    with TemporaryDirectory() as folder:
        try:
            cached = state_root() / "downloads"
            files = fetch(
                GPT2_MANIFEST,
                Path(folder) / "files",
                cache=cached if cached.is_dir() else Path(folder) / "cache",
                offline=True,
            )
        except UserError:
            return None
        by_name = {path.name: path for path in files}
        return load_gpt2_files(by_name["encoder.json"], by_name["vocab.bpe"])


def assumed_token_bytes(vocabulary: int) -> float:
    """UTF-8 bytes of a byte pair in English: 2.7 with 1,024 tokens, 4.4 with GPT-2's 50,257."""
    return 0.3 * float(np.log2(vocabulary)) - 0.3


def _corpus(parameters: Parameters, sample: Sample, tokens: Path) -> Corpus:
    section, start = parameters.tokenize, parameters.pretrain.foundation
    own = Path(start.location)
    learned = section.kind in ("bpe", "character", "word") and sample.folder is not None
    copied = section.kind == "foundation" and start.source == "folder"
    if not learned and not (copied and (own / "config.json").exists()):
        tokenizer = None if learned or copied else _published(section.kind)
    else:
        tokenizer = load_tokenizer(own) if copied else None
    if sample.folder is None or (tokenizer is None and not learned):
        return _unseen_corpus(parameters, sample, tokenizer)
    begin = time.process_time()
    plan = plan_splits(
        sample.folder,
        validation_fraction=section.validation_fraction,
        test_fraction=section.test_fraction,
        seed=parameters.runtime.seed,
    )
    planned = time.process_time()
    if tokenizer is None:
        tokenizer = make_tokenizer(section.kind, plan, section.vocabulary_size, start)
    made = time.process_time()
    counts = write_tokens(plan, tokenizer, tokens, shard_tokens=section.shard_tokens)
    written = time.process_time()
    total = sum(counts[f"{split}/tokens"] for split in SPLITS)
    size = sum(counts[f"{split}/bytes"] for split in SPLITS)
    seconds = sample.scale * (planned - begin + written - made)
    return Corpus(
        sample=sample,
        tokenizer=tokenizer,
        vocabulary=tokenizer.vocabulary_size,
        tokens=_by_split(parameters, round(total * sample.scale)),
        documents=sample.items,
        lengths=_document_lengths(tokens),
        token_bytes=size / total,
        seconds=seconds + sample.scale**HEAPS * (made - planned),
    )


def _document_lengths(tokens: Path) -> np.ndarray:
    """Tokens of every document in a token folder, [N]."""
    splits = [TokenSplit(tokens, name) for name in SPLITS]
    return np.concatenate(
        [np.diff(np.append(split.document_starts, split.tokens)) for split in splits]
    )


def _published(kind: str) -> Tokenizer | None:
    return gpt2_tokenizer() if kind in ("gpt2", "foundation") else None


def _unseen_corpus(parameters: Parameters, sample: Sample, tokenizer: Tokenizer | None) -> Corpus:
    section = parameters.tokenize
    sizes = {"bpe": section.vocabulary_size, "word": section.vocabulary_size}
    vocabulary = sizes.get(section.kind, GPT2_VOCABULARY)
    if section.kind == "character":
        vocabulary = CHARACTERS
    if tokenizer is not None:
        vocabulary = tokenizer.vocabulary_size
    each = 1.0 if section.kind == "character" else assumed_token_bytes(vocabulary)
    total = round(sample.bytes / each)
    return Corpus(
        sample=sample,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        tokens=_by_split(parameters, total),
        documents=sample.items,
        lengths=np.array([max(1, total // max(1, sample.items))]),
        token_bytes=each,
        seconds=total / 500_000,  # tokens a second, one thread with cleaning
    )


def _by_split(parameters: Parameters, total: int) -> dict[str, int]:
    section = parameters.tokenize
    held = {"validation": section.validation_fraction, "test": section.test_fraction}
    tokens = {split: round(total * share) for split, share in held.items()}
    return {"train": total - sum(tokens.values()), **tokens}


def _messages(
    parameters: Parameters, sample: Sample, tokenizer: Tokenizer | None, token_bytes: float
) -> Rows:
    section = parameters.prepare_classification
    if sample.folder is None:
        kept = 2 * RAREST if section.balance == "undersample" else 1.0
        shares = {"train": section.train_fraction, "validation": section.validation_fraction}
        shares["test"] = 1 - sum(shares.values())
        mean = sample.bytes / sample.items / token_bytes
        return Rows(
            sample,
            {split: round(sample.items * kept * share) for split, share in shares.items()},
            dict.fromkeys(SPLITS, _spread(mean)),
        )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "classification"
        classification.prepare(
            sample.folder / classification.RAW_FILE,
            folder,
            **dict(section),
            seed=parameters.runtime.seed,
        )
        tables = {name: classification.read_split(folder, name) for name in SPLITS}
    texts = {name: list(table["text"]) for name, table in tables.items()}
    few = tables["train"].groupby("label").head(2)  # what a first fit imports does not grow
    tfidf_baseline(list(few["text"]), few["label"].to_numpy(), False, seed=0)
    begin = time.process_time()
    tfidf_baseline(texts["train"], tables["train"]["label"].to_numpy(), False, seed=0)
    seconds = time.process_time() - begin
    return Rows(
        sample,
        {name: round(len(rows) * sample.scale) for name, rows in texts.items()},
        {name: _lengths(rows, tokenizer, token_bytes) for name, rows in texts.items()},
        baseline=seconds * sample.scale,
    )


def _entries(
    parameters: Parameters, sample: Sample, tokenizer: Tokenizer | None, token_bytes: float
) -> Rows:
    section = parameters.prepare_instructions
    style = section.prompt_style
    if sample.folder is None:
        shares = {"train": section.train_fraction, "test": section.test_fraction}
        shares["validation"] = 1 - sum(shares.values())
        empty = {"instruction": "", "input": "", "output": ""}
        prompt = len(format_prompt(empty, style).encode()) / token_bytes
        each = sample.bytes / sample.items / token_bytes
        return Rows(
            sample,
            {split: round(sample.items * share) for split, share in shares.items()},
            dict.fromkeys(SPLITS, _spread(prompt + each)),
            prompts=_spread(prompt + each / 2),
            answers=_spread(each / 2),
        )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "instructions"
        instructions.prepare(
            sample.folder / "instructions.json",
            folder,
            train_fraction=section.train_fraction,
            test_fraction=section.test_fraction,
            seed=parameters.runtime.seed,
        )
        parts = {name: read_json(folder / f"{name}.json") for name in SPLITS}
    prompts, answers = (
        _lengths([write(entry, style) for entry in parts["test"]], tokenizer, token_bytes)
        for write in (format_prompt, format_response)
    )
    return Rows(
        sample,
        {name: round(len(entries) * sample.scale) for name, entries in parts.items()},
        {name: _whole_lengths(part, tokenizer, style, token_bytes) for name, part in parts.items()},
        prompts,
        answers,
    )


def _whole_lengths(
    entries: list[dict[str, str]], tokenizer: Tokenizer | None, style: str, token_bytes: float
) -> np.ndarray:
    """Tokens of prompt and response together, their end included, [N]."""
    if tokenizer is None:
        texts = [format_prompt(e, style) + format_response(e, style) for e in entries]
        return _lengths(texts, None, token_bytes)
    examples = encode_entries(entries, tokenizer, style, np.iinfo(np.int64).max)
    return np.array([len(example.ids) for example in examples])


def _lengths(texts: list[str], tokenizer: Tokenizer | None, token_bytes: float) -> np.ndarray:
    if tokenizer is not None:
        return np.array([max(1, len(ids)) for ids in tokenizer.encode_batch(texts)])
    return np.array([max(1, round(len(text.encode()) / token_bytes)) for text in texts])


def _spread(mean: float) -> np.ndarray:
    """A thousand lengths of this mean, as short texts have them."""
    lengths = mean * np.exp(DEVIATION * QUANTILES - DEVIATION**2 / 2)
    return np.maximum(1, np.rint(lengths)).astype(np.int64)
