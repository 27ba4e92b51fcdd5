"""How a text within a grammar can end soon. A model that never closes a string is led there."""

from collections.abc import Iterator

import llguidance

# Where a choice is open, the first of these that is allowed: what closes, what leads on, and then
# the shortest values.
PREFERENCE = b'"}],:0[ntf1-{a '


class ShortEnds:
    """Finds short rests of texts over one table of tokens."""

    def __init__(self, tokens: llguidance.LLTokenizer) -> None:
        order = [*PREFERENCE, *(byte for byte in range(256) if byte not in PREFERENCE)]
        pieces = [tokens.tokenize_bytes(bytes([byte])) for byte in order]
        self._order = [piece for piece in pieces if len(piece) == 1]
        self._end_of_text = tokens.eos_token

    def find(self, matcher: llguidance.LLMatcher, most: int) -> list[int] | None:
        """A short rest of a text, the end-of-text token included, not always the shortest.

        Args:
            matcher: where the text stands; it stays there.

        Returns:
            token ids, at most `most`; None where none was found.
        """
        trial, ids = matcher.deep_copy(), list[int]()
        while len(ids) < most:
            if trial.is_accepting():
                return [*ids, self._end_of_text]
            step = trial.compute_ff_tokens() or next(self._allowed(trial), [])
            if not step or not trial.consume_tokens(step):
                return None
            ids += step
        return None

    def holds(self, matcher: llguidance.LLMatcher, end: list[int]) -> bool:
        """Whether an end that was found elsewhere is one from here, too."""
        *rest, _ = end
        if matcher.validate_tokens(rest) < len(rest):
            return False
        trial = matcher.deep_copy()
        return trial.consume_tokens(rest) and trial.is_accepting()

    def _allowed(self, matcher: llguidance.LLMatcher) -> Iterator[list[int]]:
        return (token for token in self._order if matcher.validate_tokens(token))
