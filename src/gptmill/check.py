"""The three data sets as the pipeline will read them, before anything runs.

By the stages' own code, in a temporary folder: what is read and what is left out, splits, balance,
lengths against the window, what will be cut, and the first rows as the model sees them.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptmill.data import classification, instructions
from gptmill.data.corpus import SPLITS
from gptmill.data.raw import INSTRUCTIONS_FILE, make_raw
from gptmill.data.shards import write_tokens
from gptmill.data.splits import Plan, plan_splits, split_documents
from gptmill.data.tokenizers import make_tokenizer
from gptmill.engine.runtime import open_runtime
from gptmill.files import read_json
from gptmill.params import Foundation, Parameters
from gptmill.plan.counts import gpt2_tokenizer
from gptmill.plan.machine import measure_machine
from gptmill.plan.table import as_text as plan_text
from gptmill.plan.whole import make_plan
from gptmill.reading import cut
from gptmill.report.data import SECTIONS
from gptmill.sources import Dataset, Embedded
from gptmill.tasks.instruct import collate_instructions, encode_entries
from gptmill.tasks.language_model import IGNORED
from gptmill.tokenizer import Tokenizer

EMBEDDED_COUNT = 2000  # of an embedded source, which is known
SHOWN, SHOWN_TOKENS = 3, 60  # first rows, and tokens of each
TERMINAL_TOKENS = 20  # whose ids fit into a line
GPT2_CONTEXT = 1024
LEARNED, OTHER, PLAIN = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"  # a terminal's bold green, faint, plain


@dataclass(frozen=True)
class Row:
    """The beginning of one row as the model sees it.

    Attributes:
        pieces: what each id adds to the text; '' where a character is not yet whole.
        targets: what is to be predicted at each id: the next id, the label at a classifier's last
            token, or None where the loss is masked.
    """

    ids: list[int]
    pieces: list[str]
    targets: list[int | str | None]


@dataclass
class Part:
    """What is known of one data set: what its reader said, facts in order, a table, first rows,
    and text as it stands."""

    title: str
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    table: tuple[list[str], list[list[Any]]] | None = None
    rows: list[Row] = field(default_factory=list)
    text: str = ""


def check(parameters: Parameters, names: Sequence[str], folder: Path) -> Iterator[Part]:
    """Read the data sets `names`, each in a folder of its own below `folder`.

    Raises:
        UserError: what the stages would raise, before hours of training.
    """
    corpus, tokenizer = _corpus(parameters, folder / "corpus")
    if "corpus" in names:
        yield corpus
    if "classification" in names:
        section = parameters.load_gpt2.classifier
        yield _classification(parameters, folder / "classification", *_start(
            section, tokenizer, parameters))  # fmt: skip
    if "instructions" in names:
        section = parameters.load_gpt2.instructions
        yield _instructions(parameters, folder / "instructions", *_start(
            section, tokenizer, parameters))  # fmt: skip


def _start(
    section: Foundation, tokenizer: Tokenizer, parameters: Parameters
) -> tuple[Tokenizer, int]:
    """Tokenizer and window of the model that will be fine-tuned, as far as they are here."""
    if section.source == "folder":
        return tokenizer, section.context_length or parameters.pretrain.model.context_length
    return gpt2_tokenizer() or tokenizer, section.context_length or GPT2_CONTEXT


def _raw(name: str, section: Dataset, folder: Path, part: Part) -> Path:
    if isinstance(section, Embedded) and section.count > EMBEDDED_COUNT:
        part.facts["source"] = f"embedded, the first {EMBEDDED_COUNT:,} of {section.count:,}"
        section = section.model_copy(update={"count": EMBEDDED_COUNT})
    else:
        keys = section.model_dump(exclude={"instead"}).items()
        part.facts["source"] = ", ".join(f"{key} {value}" for key, value in keys if value)
    folder.mkdir(parents=True)
    with redirect_stdout(io.StringIO()) as said:
        make_raw(name, section, folder / "raw")
    part.notes += said.getvalue().splitlines()
    return folder / "raw"


def _corpus(parameters: Parameters, folder: Path) -> tuple[Part, Tokenizer]:
    part = Part("Corpus")
    raw = _raw("corpus", parameters.download.corpus, folder, part)
    with redirect_stdout(io.StringIO()) as said:
        plan, tokenizer, counts = _tokenized(parameters, raw, folder / "tokens")
    part.notes += said.getvalue().splitlines()
    for split, share in zip(SPLITS, plan.shares):
        part.facts[split] = (
            f"{counts[f'{split}/documents']:,} documents, {counts[f'{split}/tokens']:,} tokens, "
            f"{share:.1%} of the text"
        )
        unknown = counts.get(f"{split}/unknown/share")
        if unknown:
            part.facts[f"{split}, unknown tokens"] = f"{unknown:.2%}"
    part.facts |= {
        f"dropped, {reason.replace('_', ' ')}": f"{count:,}"
        for reason, count in plan.dropped.counts.items()
        if count
    }
    first = [d.text for d, _ in zip(split_documents(plan, "train"), range(SHOWN))]
    part.rows = [_language_row(tokenizer, tokenizer.encode(text[:2000])) for text in first]
    return part, tokenizer


def _tokenized(
    parameters: Parameters, raw: Path, folder: Path
) -> tuple[Plan, Tokenizer, dict[str, float]]:
    """What the stage `tokenize` makes of a raw corpus."""
    section = parameters.tokenize
    plan = plan_splits(
        raw,
        validation_fraction=section.validation_fraction,
        test_fraction=section.test_fraction,
        seed=parameters.runtime.seed,
    )
    tokenizer = make_tokenizer(
        section.kind, plan, section.vocabulary_size, parameters.pretrain.foundation
    )
    counts = write_tokens(plan, tokenizer, folder, shard_tokens=section.shard_tokens)
    return plan, tokenizer, counts


def _classification(
    parameters: Parameters, folder: Path, tokenizer: Tokenizer, context: int
) -> Part:
    part, section = Part("Labeled texts"), parameters.finetune_classifier
    raw = _raw("classification", parameters.download.classification, folder, part)
    prepared = folder / "prepared"
    with redirect_stdout(io.StringIO()) as said:
        counts = classification.prepare(
            raw / classification.RAW_FILE,
            prepared,
            **dict(parameters.prepare_classification),
            seed=parameters.runtime.seed,
        )
    part.notes += said.getvalue().splitlines()
    labels = classification.read_labels(prepared)
    part.facts["labels"] = f"{len(labels)}"
    for split in SPLITS:
        part.facts[split] = (
            f"{counts[f'{split}/rows']:,} texts, {counts[f'{split}/rarest_class']:,} to "
            f"{counts[f'{split}/commonest_class']:,} of a label"
        )
    part.facts["texts that repeat another"] = f"{counts['duplicates/kept_together']:,}"
    part.facts["of them with another label"] = f"{counts['duplicates/other_label']:,}"
    part.facts["dropped, text of a held-out split"] = f"{counts[classification.DUPLICATE]:,}"
    part.table = classification.class_table(prepared)
    frame = classification.read_split(prepared, "train")
    ids = tokenizer.encode_batch(list(frame["text"]))
    window = min(section.maximum_length or max(map(len, ids)), context)
    _lengths(part, [len(text) for text in ids], window, f"read by {section.long_texts}")
    part.rows = [
        _labeled_row(tokenizer, cut(text, window, section.long_texts)[0], labels[label])
        for text, label in zip(ids[:SHOWN], frame["label"])
    ]
    return part


def _instructions(parameters: Parameters, folder: Path, tokenizer: Tokenizer, context: int) -> Part:
    part, section = Part("Instructions"), parameters.prepare_instructions
    raw = _raw("instructions", parameters.download.instructions, folder, part)
    counts = instructions.prepare(
        raw / INSTRUCTIONS_FILE,
        folder / "prepared",
        train_fraction=section.train_fraction,
        test_fraction=section.test_fraction,
        seed=parameters.runtime.seed,
    )
    part.facts |= {split: f"{counts[f'{split}/entries']:,} entries" for split in SPLITS}
    repeated = counts["dropped/prompt_in_another_split"]
    part.facts["dropped, prompt of another split"] = f"{repeated:,}"
    entries = read_json(folder / "prepared/train.json")
    part.facts["with a history"] = f"{sum('history' in entry for entry in entries):,}"
    tuning = parameters.finetune_instructions
    window = min(tuning.allowed_max_length or context + 1, context + 1)
    examples = encode_entries(entries, tokenizer, section.prompt_style, np.iinfo(np.int64).max)
    _lengths(part, [len(example.ids) for example in examples], window, "cut at their end")
    filled = sum(example.first_answer >= window for example in examples)
    part.facts["left out, prompt fills the window"] = f"{filled:,}"
    for example in examples[:SHOWN]:
        batch = collate_instructions([example], tokenizer.end_of_text, tuning.mask_prompt)
        part.rows.append(_language_row(tokenizer, example.ids[:window], batch.targets[0]))
    return part


def _lengths(part: Part, lengths: list[int], window: int, rule: str) -> None:
    middle, high = np.percentile(lengths, [50, 95])
    part.facts["tokens"] = (
        f"{middle:.0f} in the median, {high:.0f} at 95%, {max(lengths)} at most; the window has "
        f"{window}"
    )
    longer = sum(length > window for length in lengths)
    part.facts[f"longer than the window, {rule}"] = f"{longer:,} of {len(lengths):,}"


def _language_row(tokenizer: Tokenizer, ids: list[int], targets: np.ndarray | None = None) -> Row:
    """A row of a language model; all that follows is learned if there are no `targets` [T - 1]."""
    following = ids[1:] if targets is None else [int(id) for id in targets]
    shown = ids[:SHOWN_TOKENS]
    wanted: list[int | str | None] = [
        None if id == IGNORED else id for id in [*following, IGNORED][: len(shown)]
    ]
    return Row(shown, _pieces(tokenizer, shown), wanted)


def _labeled_row(tokenizer: Tokenizer, ids: list[int], label: str) -> Row:
    """The end of a classifier's row, which learns at its last token alone."""
    shown = ids[-SHOWN_TOKENS:]
    return Row(shown, _pieces(tokenizer, shown), [*[None] * (len(shown) - 1), label])


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """What each token adds to the text: a character of several stands at its last."""
    decoding = tokenizer.decoding()
    pieces = [decoding.push(id) for id in ids]
    return [*pieces[:-1], pieces[-1] + decoding.finish()] if pieces else []


def cost(parameters: Parameters) -> Part:
    """What `gptmill plan` says of these parameters on this machine."""
    made = make_plan(parameters, measure_machine(open_runtime(**dict(parameters.runtime))))
    return Part("Cost", text=plan_text(made))


# --- To read


def as_text(part: Part, color: bool) -> str:
    """For a terminal: learned tokens bold and green, others faint."""
    lines = [part.title, *(f"  {note}" for note in part.notes)]
    width = max(map(len, part.facts), default=0)
    lines += [f"  {name:{width}}  {value}" for name, value in part.facts.items()]
    if part.table:
        columns, rows = part.table
        lines += ["", "  " + "\t".join(map(str, columns))]
        lines += ["  " + "\t".join(map(str, row)) for row in rows]
    for row in part.rows:
        lines += ["", *_row_lines(row, color)]
    return "\n".join([*lines, *part.text.splitlines()]) + "\n"


def _row_lines(row: Row, color: bool) -> list[str]:
    learned = [False, *(target is not None for target in row.targets[:-1])]
    text = "".join(
        f"{LEARNED if known else OTHER}{piece}{PLAIN}" if color else piece
        for piece, known in zip(row.pieces, learned)
    )
    told = f" → {row.targets[-1]}" if isinstance(row.targets[-1], str) else ""
    some = slice(0, TERMINAL_TOKENS)
    targets = ("–" if target is None else str(target) for target in row.targets[some])
    return [
        f"  {text}{told}",
        f"  ids     {' '.join(map(str, row.ids[some]))} …",
        f"  targets {' '.join(targets)} …",
    ]


def as_json(parts: Sequence[Part], parameters: Parameters) -> dict[str, Any]:
    """All of it, and the parameters it depends on, for the page and the report."""
    read = parameters.model_dump(mode="json", include=set(SECTIONS))
    return {"profile": parameters.profile, "parameters": read, "parts": [asdict(p) for p in parts]}
