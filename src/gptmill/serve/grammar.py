"""llguidance (Microsoft): which tokens keep a text within a grammar. V is the vocabulary."""

from collections.abc import Mapping
from typing import Any

import llguidance
import numpy as np
import tiktoken
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from llguidance.tiktoken import lltokenizer_from_encoding

from gptmill.errors import UserError
from gptmill.serve.closing import ShortEnds
from gptmill.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BytePairTokenizer,
    LibraryTokenizer,
    Tokenizer,
)

# Of one request's step, and of its grammar. An object takes four items of a row for each optional
# property; the rest are llguidance's own defaults, written down because they are promised.
LIMITS = llguidance.LLParserLimits(
    max_items_in_row=4500,
    step_max_items=50_000,
    step_lexer_fuel=200_000,
    initial_lexer_fuel=1_000_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
)
PROBED_TOKENS = 32
LONGEST_END = 512  # tokens of an end that a response is led to
SPARE = 16  # tokens before it must be, in which the model may still end by itself


def vocabulary_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `token_table` needs of a tokenizer, as JSON can hold it.

    Raises:
        UserError: the model's tokens are not bytes of text.
    """
    size = {"size": tokenizer.vocabulary_size, "end_of_text": tokenizer.end_of_text}
    if isinstance(tokenizer, BytePairTokenizer):
        tokens = sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
        return {"tokens": [token.hex() for token in tokens], **size}
    if isinstance(tokenizer, LibraryTokenizer):
        return {"tokenizer_json": tokenizer.text, **size}
    raise UserError("a format needs a model with byte-pair tokens, which this one does not have")


def token_table(vocabulary: Mapping[str, Any]) -> llguidance.LLTokenizer:
    """The vocabulary as llguidance wants it, which takes a moment to build.

    Raises:
        UserError: the model's tokens are not bytes of text.
    """
    size, end_of_text = vocabulary["size"], vocabulary["end_of_text"]
    if "tokenizer_json" in vocabulary:
        try:
            return llguidance.LLTokenizer(
                vocabulary["tokenizer_json"], n_vocab=size, eos_token=end_of_text
            )
        except ValueError as error:
            raise UserError(
                f"a format needs a model whose tokens are bytes of text: {str(error)[:80]}"
            ) from None
    encoding = tiktoken.Encoding(
        "gptmill",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={bytes.fromhex(token): id for id, token in enumerate(vocabulary["tokens"])},
        special_tokens={END_OF_TEXT: end_of_text},
    )
    return lltokenizer_from_encoding(encoding, n_vocab=size, eos_token=end_of_text)


def compile_schema(tokens: llguidance.LLTokenizer, schema: str) -> llguidance.LLMatcher:
    """A matcher at the start of a text that is JSON of the schema.

    Raises:
        UserError: the schema is wrong, or uses what llguidance cannot enforce.
    """
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            schema,
            overrides={
                "whitespace_flexible": False,
                "whitespace_pattern": None,
                "coerce_one_of": False,
            },
        )
    except ValueError as error:
        raise UserError(f"format is no JSON schema: {error}") from None
    matcher = llguidance.LLMatcher(tokens, grammar, log_level=0, limits=LIMITS)
    check(matcher)
    return matcher


def probe(matcher: llguidance.LLMatcher, vocabulary_size: int) -> None:
    """Write the beginning of a text at random, so that what fails there fails before a client
    reads any of it; the matcher is used up.

    Raises:
        UserError: no text is possible, or the grammar is too complex.
    """
    constraint, draw = Constraint(matcher, vocabulary_size), np.random.default_rng(0)
    for _ in range(PROBED_TOKENS):
        if matcher.is_stopped():
            return
        allowed = np.flatnonzero(constraint.allowed())
        constraint.accept(int(draw.choice(allowed)), left=0)


def check(matcher: llguidance.LLMatcher) -> None:
    """Raise what stopped a matcher, if anything did."""
    if matcher.is_error():
        reason = matcher.get_error().partition("\n")[0]
        raise UserError(f"format is no JSON schema that can be enforced: {reason[:300]}")


class Constraint:
    """The state of one response within its schema.

    As the limit of its tokens nears, the response is led to a short end, so that what is returned
    is whole: a small model may never close a string by itself.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, vocabulary_size: int, ends: ShortEnds | None = None
    ) -> None:
        self._matcher, self._vocabulary_size, self._ends = matcher, vocabulary_size, ends
        self._bits = allocate_token_bitmask(1, vocabulary_size)
        self._end: list[int] | None = None  # a short one from here, once the limit is near
        first = self._short_end(LONGEST_END)
        self._near = 2 * len(first) + SPARE if first else 0

    def allowed(self) -> np.ndarray:
        """Of each token [V], whether it may come next.

        Raises:
            UserError: none may, or the grammar is too complex here.
        """
        fill_next_token_bitmask(self._matcher, self._bits)
        check(self._matcher)
        bits = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little")
        return bits[: self._vocabulary_size].astype(bool)

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """Logits [1, V] with minus infinity at tokens that the schema forbids here."""
        return np.where(self.allowed()[: logits.shape[1]], logits, np.float32(-np.inf))

    def accept(self, token: int, left: int) -> int:
        """Go on after this token, or after another where this one leaves too few for an end.

        Args:
            left: tokens that may still follow, the end-of-text token among them.

        Returns:
            the token that was taken. Raises what `allowed` does.
        """
        if self._end is None and left < self._near:
            self._end = self._short_end(left + 1)
        before = self._end
        self._take(token)
        if before is None or self._matcher.is_stopped():
            return token
        if token == before[0]:
            self._end = before[1:]
        elif len(before) > left or not self._holds(before):
            self._end = self._short_end(left)
            if self._end is None:
                self._matcher.rollback(1)
                token, self._end = before[0], before[1:]
                self._take(token)
        return token

    def _short_end(self, most: int) -> list[int] | None:
        return self._ends.find(self._matcher, most) if self._ends else None

    def _holds(self, end: list[int]) -> bool:
        return self._ends is not None and self._ends.holds(self._matcher, end)

    def _take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            check(self._matcher)
            raise RuntimeError(f"the schema refused a token it had allowed: {token}")
