"""Text to tensors: tokenizers side by side, and what sliding windows cost."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptmill.data.tokens import sliding_windows
from gptmill.engine.runtime import Runtime
from gptmill.model.gpt2 import GPT2
from gptmill.study.draw import COLORS, GREY, bars, panels
from gptmill.study.finding import Finding
from gptmill.tasks.language_model import token_nats
from gptmill.tokenizer import (
    END_OF_TEXT,
    UNKNOWN,
    Tokenizer,
    split_words,
    train_byte_pairs,
    train_vocabulary,
)
from gptmill.tokenizer.vocabulary import WORD_PATTERN

NEW_WORD = "Akwirwier"  # nobody's name: no vocabulary of words has it
BYTE_PAIRS = 1024
EVERY_WORD = 10**9  # no limit on a vocabulary


@dataclass(frozen=True)
class Split:
    """A way to cut text into pieces, and how many different ones it knows."""

    name: str
    vocabulary: int
    pieces: Callable[[str], list[str]]


def split_keeping_spaces(text: str) -> list[str]:
    """Words, punctuation and white space, so that the pieces joined are the text again."""
    return [piece for piece in re.split(WORD_PATTERN, text) if piece]


def tokenizers(training: Sequence[str], held_out: Sequence[str], own: Tokenizer) -> Finding:
    """Every splitter learned from the same texts, measured on the same held-out texts."""
    text = "\n".join(held_out)
    words, size = len(text.split()), len(text.encode())
    rows: list[dict[str, Any]] = []
    for way in _ways(training, own):
        pieces = way.pieces(text)
        rows.append(
            {
                "tokenizer": way.name,
                "vocabulary": way.vocabulary,
                "tokens_per_word": len(pieces) / words,
                "bytes_per_token": size / len(pieces),
                "unknown_share": pieces.count(UNKNOWN) / len(pieces),
                "new_word": "·".join(way.pieces(NEW_WORD)),
            }
        )
    figure, (left, right) = panels(1, 2, 7.6, 2.8)
    names = [row["tokenizer"] for row in rows]
    for axes, column, title in (
        (left, "tokens_per_word", "tokens per word"),
        (right, "bytes_per_token", "bytes per token"),
    ):
        values = [row[column] for row in rows]
        bars(
            axes, names if axes is left else [""] * len(rows), values, [f"{v:.2f}" for v in values]
        )
        axes.set_title(title)
    found = {row["tokenizer"]: row for row in rows}
    byte_pairs, plain = found["byte pairs"], found["words"]
    words_tokenizer = train_vocabulary(training, "word", EVERY_WORD)
    lower_cased = _lower_cased(training)
    joined = f" {END_OF_TEXT} ".join(held_out)
    ends = words_tokenizer.encode(joined).count(words_tokenizer.end_of_text)
    return Finding(
        "tokenizers",
        2,
        "Words, characters and byte pairs",
        f"A sorted vocabulary of {plain['vocabulary']:,} words reads {NEW_WORD} as {UNKNOWN} and "
        f"loses it; {byte_pairs['vocabulary']:,} byte pairs read {byte_pairs['new_word']} and lose "
        f"nothing, at {byte_pairs['tokens_per_word']:.2f} tokens a word. White space as tokens of "
        f"its own makes that {found['words and spaces']['tokens_per_word']:.2f}; ignoring capitals "
        f"saves {plain['vocabulary'] - lower_cased:,} words. {END_OF_TEXT} stands between texts "
        f"({ends} times in {len(held_out)})",
        {
            "byte_pairs_tokens_per_word": byte_pairs["tokens_per_word"],
            "byte_pairs_bytes_per_token": byte_pairs["bytes_per_token"],
            "words_unknown_share": plain["unknown_share"],
            "words_vocabulary": plain["vocabulary"],
            "words_lower_cased_vocabulary": lower_cased,
            "end_of_text_tokens": ends,
        },
        rows,
        figure,
    )


def windows(model: GPT2, ids: np.ndarray, runtime: Runtime) -> Finding:
    """Sliding windows over ids [N]: pairs by stride, and loss against tokens computed.

    Each token is scored once, by the first window that holds it, with at least
    `max_length - stride` tokens before it: overlap buys context and costs passes.
    """
    length = model.config.context_length
    rows = []
    for share in (1, 2, 4):
        stride = max(1, length // share)
        inputs, _ = sliding_windows(ids, length, stride)
        rows.append(
            {
                "max_length": length,
                "stride": stride,
                "pairs": len(inputs),
                "tokens_computed": inputs.size,
                "passes_per_token": inputs.size / len(ids),
                "loss": float(token_nats(model, ids, length, stride, runtime).mean()),
            }
        )
    figure, (left, right) = panels(1, 2, 7.6, 3.0, width_ratios=[1.3, 1])
    _draw_windows(left)
    right.plot(
        [row["passes_per_token"] for row in rows],
        [row["loss"] for row in rows],
        marker="o",
        color=COLORS[0],
    )
    for row in rows:
        at = (row["passes_per_token"], row["loss"])
        right.annotate(f"stride {row['stride']}", at, (5, 5), textcoords="offset points")
    right.margins(0.25)
    right.set_xlabel("times each token is computed")
    right.set_ylabel("held-out loss, nats a token")
    right.set_title("overlap buys context and costs passes")
    first, last = rows[0], rows[-1]
    return Finding(
        "sliding_windows",
        2,
        "Sliding windows",
        f"{len(ids):,} characters cut into windows of {length}: {first['pairs']} input–target "
        f"pairs at stride {first['stride']}, {last['pairs']} at stride {last['stride']}. The "
        f"overlap computes each token {last['passes_per_token']:.1f} times, gives each more of "
        f"what came before, and moves the held-out loss from {first['loss']:.3f} to "
        f"{last['loss']:.3f}. The target of every input is the token after it",
        {"loss_without_overlap": first["loss"], "loss_with_overlap": last["loss"],
         "pairs_without_overlap": first["pairs"], "pairs_with_overlap": last["pairs"]},
        rows,
        figure,
    )  # fmt: skip


def _ways(training: Sequence[str], own: Tokenizer) -> list[Split]:
    known = {piece for text in training for piece in split_keeping_spaces(text)}

    def spaced(text: str) -> list[str]:
        return [piece if piece in known else UNKNOWN for piece in split_keeping_spaces(text)]

    learned = {
        "words": train_vocabulary(training, "word", EVERY_WORD),
        "characters": train_vocabulary(training, "character", EVERY_WORD),
        "byte pairs": train_byte_pairs(training, BYTE_PAIRS),
        "this pipeline's": own,
    }
    return [
        Split("words and spaces", len(known), spaced),
        *(Split(name, t.vocabulary_size, _pieces(t)) for name, t in learned.items()),
    ]


def _pieces(tokenizer: Tokenizer) -> Callable[[str], list[str]]:
    return lambda text: [tokenizer.decode([id]) for id in tokenizer.encode(text)]


def _lower_cased(training: Sequence[str]) -> int:
    return len({word.lower() for text in training for word in split_words(text)})


def _draw_windows(axes) -> None:
    """Windows of four over twelve tokens at three strides, targets one further."""
    place = 0
    for color, stride in zip(COLORS, (4, 2, 1)):
        starts = range(0, 12 - 4, stride)
        for start in starts:
            axes.barh(place, 4, left=start, height=0.7, color=color, alpha=0.75)
            axes.barh(place, 1, left=start + 4, height=0.7, color="none", edgecolor=color)
            place += 1
        axes.text(12.2, place - len(starts) / 2 - 0.5, f"stride {stride}\n{len(starts)} pairs",
                  va="center", color=color)  # fmt: skip
        place += 1
    axes.invert_yaxis()
    axes.set_xlim(0, 15)
    axes.set_xticks(range(13))
    axes.set_yticks([])
    axes.set_xlabel("token")
    axes.set_title("max_length 4; outlined: the last target", color=GREY)
