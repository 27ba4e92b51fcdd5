"""Tokens to text as they come: whole characters only, and nothing of a stop string."""

from gptmill.tokenizer import Tokenizer


class TextStream:
    """Turns one sequence's tokens into pieces of text that may be shown at once.

    Held back are characters that are not whole or not certain yet, and those that may begin a stop
    string.
    The pieces joined equal `tokenizer.decode` of the tokens, up to the first stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self.text = ""  # shown so far
        self._stop_strings = stop_strings
        self._decoding = tokenizer.decoding()
        self._held = ""  # decoded, but perhaps the start of a stop string

    def push(self, token: int) -> str:
        """Take the next token; return what may be shown now, perhaps nothing."""
        return self._show(self._decoding.push(token), final=False)

    def finish(self) -> str:
        """No token follows: return what was held back. Broken characters become U+FFFD."""
        return self._show(self._decoding.finish(), final=True)

    def _show(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        pending = self._held + new
        ends = [at for stop in self._stop_strings if (at := pending.find(stop)) >= 0]
        if ends:
            self.stopped = True
            piece, self._held = pending[: min(ends)], ""
        else:
            hold = 0 if final else self._possible_stop(pending)
            piece, self._held = pending[: len(pending) - hold], pending[len(pending) - hold :]
        self.text += piece
        return piece

    def _possible_stop(self, pending: str) -> int:
        """Length of the longest end of `pending` that begins a stop string."""
        longest = max((len(stop) for stop in self._stop_strings), default=1) - 1
        for length in range(min(longest, len(pending)), 0, -1):
            if any(stop.startswith(pending[-length:]) for stop in self._stop_strings):
                return length
        return 0
