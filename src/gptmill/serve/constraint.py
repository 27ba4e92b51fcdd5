"""Responses that are JSON of a schema by construction: at each step only tokens that keep it
possible are left (Microsoft's llguidance computes which)."""

import json
from typing import Any

import llguidance
import numpy as np
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from gptmill.errors import UserError
from gptmill.tokenizer import GPT2_PATTERN, BytePairTokenizer, Tokenizer

ANY_OBJECT = {"type": "object"}


class Grammars:
    """Makes the constraints of one model; its table of tokens takes a moment to build.

    Raises:
        UserError: the model's tokens are not bytes of text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not isinstance(tokenizer, BytePairTokenizer):
            raise UserError("a format needs a model with byte-pair tokens, which this one has not")
        self._tokens = llguidance.LLTokenizer.from_tiktoken(
            encoder=tokenizer.ranks,
            special_tokens={"<|endoftext|>": tokenizer.end_of_text},
            pattern=GPT2_PATTERN,
            eos_token=tokenizer.end_of_text,
            n_vocab=tokenizer.vocabulary_size,
            slices=None,
        )

    def constraint(self, schema: dict[str, Any]) -> "Constraint":
        """What holds one response to a JSON schema.

        Raises:
            UserError: the schema is wrong, or uses what llguidance cannot enforce.
        """
        try:
            compact = {"whitespace_flexible": False}
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), defaults=compact
            )
        except ValueError as error:
            raise UserError(f"format is no JSON schema: {error}") from None
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().splitlines()[0]
            raise UserError(f"format is no JSON schema that can be enforced: {reason}")
        return Constraint(matcher, self._tokens.vocab_size)


class Constraint:
    """The state of one response within its schema. V is the vocabulary."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._bits = allocate_token_bitmask(1, vocabulary_size)

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """Logits [1, V] with minus infinity at tokens that the schema forbids here."""
        fill_next_token_bitmask(self._matcher, self._bits)
        bits = np.unpackbits(self._bits.view(np.uint8), axis=1, bitorder="little")
        return np.where(bits[:, : logits.shape[1]], logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Go on after this token."""
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"the schema refused a token it had allowed: {token}")
