"""The three data sets as the pipeline will read them, before anything runs.

By the stages' own code, in a temporary folder: what is read and what is left out, splits, balance,
lengths against the window, what will be cut, and the first rows as the model sees them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from gptmill.data import classification, instructions
from gptmill.data.corpus import SPLITS
from gptmill.data.raw import INSTRUCTIONS_FILE, make_raw
from gptmill.data.splits import plan_splits, split_documents
from gptmill.data.tokenizers import make_tokenizer
from gptmill.data.tokens import write_tokens
from gptmill.files import read_json
from gptmill.params import Foundation, Parameters
from gptmill.plan.counts import gpt2_tokenizer
from gptmill.reading import cut
from gptmill.sources import Dataset, Embedded
from gptmill.tasks.instruct import encode_entries
from gptmill.tokenizer import Tokenizer

EMBEDDED_COUNT = 2000  # of an embedded source, which is known
SHOWN, SHOWN_TOKENS = 3, 60  # first rows, and tokens of each
GPT2_CONTEXT = 1024
LEARNED, OTHER, PLAIN = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"  # a terminal's bold green, faint, plain


@dataclass(frozen=True)
class Row:
    """One row as the model sees it: each token's id and text, and whether it is learned."""

    ids: list[int]
    pieces: list[str]
    learned: list[bool]
    label: str = ""


@dataclass
class Part:
    """What is known of one data set: facts in order, a table, first rows."""

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    table: tuple[list[str], list[list[Any]]] | None = None
    rows: list[Row] = field(default_factory=list)


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
        part.facts["source"] = ", ".join(
            f"{key} {value}"
            for key, value in section.model_dump().items()
            if value and key != "instead"
        )
    folder.mkdir(parents=True)
    make_raw(name, section, folder / "raw")
    if (folder / "raw/left_out.json").exists():
        left_out = read_json(folder / "raw/left_out.json")
        for reason, files in left_out["files"].items():
            part.facts[f"left out, {reason}"] = ", ".join(files)
        part.facts |= {reason: f"{count:,}" for reason, count in left_out["records"].items()}
    return folder / "raw"


def _corpus(parameters: Parameters, folder: Path) -> tuple[Part, Tokenizer]:
    part, section = Part("Corpus"), parameters.tokenize
    raw = _raw("corpus", parameters.download.corpus, folder, part)
    plan = plan_splits(
        raw,
        validation_fraction=section.validation_fraction,
        test_fraction=section.test_fraction,
        seed=parameters.runtime.seed,
    )
    tokenizer = make_tokenizer(
        section.kind, raw, plan, section.vocabulary_size, parameters.pretrain.foundation
    )
    counts = write_tokens(
        raw, tokenizer, folder / "tokens", plan=plan, shard_tokens=section.shard_tokens
    )
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
    first = [d.text for d, _ in zip(split_documents(raw, plan, "train"), range(SHOWN))]
    part.rows = [_row(tokenizer, tokenizer.encode(text[:2000]), 0) for text in first]
    return part, tokenizer


def _classification(
    parameters: Parameters, folder: Path, tokenizer: Tokenizer, context: int
) -> Part:
    part, section = Part("Labelled texts"), parameters.finetune_classifier
    raw = _raw("classification", parameters.download.classification, folder, part)
    prepared = folder / "prepared"
    counts = classification.prepare(
        raw / classification.RAW_FILE,
        prepared,
        **dict(parameters.prepare_classification),
        seed=parameters.runtime.seed,
    )
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
        _row(tokenizer, cut(text, window, section.long_texts)[0], window, labels[label])
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
        row = _row(tokenizer, example.ids, 0)
        spans = [*example.answers, (example.prompt_length, len(example.ids))]
        learned = [
            not tuning.mask_prompt or any(start <= at < end for start, end in spans)
            for at in range(len(row.ids))
        ]
        part.rows.append(Row(row.ids, row.pieces, learned))
    return part


def _lengths(part: Part, lengths: list[int], window: int, rule: str) -> None:
    middle, high = np.percentile(lengths, [50, 95])
    part.facts["tokens"] = (
        f"{middle:.0f} in the median, {high:.0f} at 95%, {max(lengths)} at most; the window has "
        f"{window}"
    )
    longer = sum(length > window for length in lengths)
    part.facts[f"longer than the window, {rule}"] = f"{longer:,} of {len(lengths):,}"


def _row(tokenizer: Tokenizer, ids: list[int], window: int, label: str = "") -> Row:
    ids = ids[: window or SHOWN_TOKENS][:SHOWN_TOKENS]
    # A classifier learns from its last token; a language model from all.
    learned = [not label or at == len(ids) - 1 for at in range(len(ids))]
    return Row(ids, [tokenizer.decode([id]) for id in ids], learned, label)


# --- To read


def as_text(part: Part, colour: bool) -> str:
    """For a terminal: learned tokens bold and green, others faint."""
    width = max(map(len, part.facts))
    lines = [part.title, *(f"  {name:{width}}  {value}" for name, value in part.facts.items())]
    if part.table:
        columns, rows = part.table
        lines += ["", "  " + "\t".join(map(str, columns))]
        lines += ["  " + "\t".join(map(str, row)) for row in rows]
    for row in part.rows:
        pieces = "".join(
            f"{LEARNED if known else OTHER}{piece}{PLAIN}" if colour else piece
            for piece, known in zip(row.pieces, row.learned)
        )
        told = f" → {row.label}" if row.label else ""
        lines += ["", f"  {pieces!s}{told}", f"  ids {' '.join(map(str, row.ids[:20]))} …"]
        lines.append(f"  learned: {sum(row.learned)} of the {len(row.ids)} tokens shown")
    return "\n".join(lines) + "\n"


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:900px;margin:32px auto;padding:0 16px;
color:#16202c;background:#f6f7f9}table{border-collapse:collapse}
td,th{text-align:left;padding:2px 16px 2px 0;vertical-align:top}
pre{white-space:pre-wrap;background:#fff;padding:12px;border-radius:8px}
.yes{background:#bfe8cf}small{color:#5a6572}
@media(prefers-color-scheme:dark){body{color:#e6eaee;background:#12171d}pre{background:#1b222a}
.yes{background:#1d5b38}small{color:#9aa5b0}}"""


def as_page(parts: Sequence[Part]) -> str:
    """One page that loads nothing: tokens that are learned have a ground of their own."""
    body = "".join(map(_html, parts))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>gptmill data check</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>Data, as the model will see them</h1>{body}</html>\n"
    )


def _html(part: Part) -> str:
    facts = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in part.facts.items()
    )
    table = ""
    if part.table:
        head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in part.table[0])
        rows = (
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in part.table[1]
        )
        inner = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
        table = f"<details><summary>Labels</summary>{inner}</details>"
    return f"<h2>{part.title}</h2><table>{facts}</table>{table}{''.join(map(_html_row, part.rows))}"


def _html_row(row: Row) -> str:
    pieces = "".join(
        f'<span class="{"yes" if known else "no"}" title="{id}">{escape(piece)}</span>'
        for id, piece, known in zip(row.ids, row.pieces, row.learned)
    )
    told = f"<p>label <b>{escape(row.label)}</b></p>" if row.label else ""
    ids = " ".join(map(str, row.ids))
    return f"<pre>{pieces}</pre>{told}<p><small>ids {ids}</small></p>"
