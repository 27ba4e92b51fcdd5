"""Responses that are JSON of a schema by construction: at each step only tokens that keep it
possible are left."""

import json
import threading
from collections import OrderedDict
from typing import Any

import llguidance

from gptmill.serve.closing import ShortEnds
from gptmill.serve.grammar import Constraint, compile_schema, token_table, vocabulary_of
from gptmill.serve.schema import prepare
from gptmill.serve.trial import Trial
from gptmill.tokenizer import Tokenizer

KEPT = 32  # grammars; clients send the same schema again and again


class Grammars:
    """Makes the constraints of one model; its table of tokens takes a moment to build.

    Raises:
        UserError: the model's tokens are not bytes of text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = vocabulary_of(tokenizer)
        self._tokens = token_table(vocabulary)
        self._ends = ShortEnds(self._tokens)
        self._trial = Trial(vocabulary)
        self._kept: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._keeping = threading.Lock()

    def constraint(self, schema: dict[str, Any], deadline: float) -> Constraint:
        """What holds one response to a JSON schema.

        Args:
            deadline: `time.monotonic()` after which nobody waits for it.

        Raises:
            UserError: the schema is wrong, beyond a bound, or uses what llguidance cannot enforce.
            TimeoutError: the deadline came first.
        """
        text = json.dumps(prepare(schema))
        matcher = self._matcher(text, deadline)
        return Constraint(matcher, self._tokens.vocab_size, self._ends)

    def close(self) -> None:
        """End the process in which schemas are tried."""
        self._trial.close()

    def _matcher(self, text: str, deadline: float) -> llguidance.LLMatcher:
        with self._keeping:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text].deep_copy()
        self._trial.check(text, deadline)
        matcher = compile_schema(self._tokens, text)
        with self._keeping:
            self._kept[text] = matcher
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return matcher.deep_copy()
