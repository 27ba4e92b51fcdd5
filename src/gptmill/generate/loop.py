"""The generation loop: batches of unequal prompts, stopping, streaming, sliding.

Shapes: B batch, T prompt tokens padded on the left, V vocabulary.

**Beyond the context.** A sequence's window is what the model sees of it. GPT-2's positions are
absolute, so that a cache cannot slide by one token; when a window is full, it is cut to its last
half and computed anew. A window depends on its own sequence alone, therefore a batch gives what
each prompt gives alone. A prompt longer than the context is seen from its last tokens.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from gptmill.batching import left_padded
from gptmill.errors import UserError
from gptmill.generate.sampling import Sampler, SamplingOptions
from gptmill.generate.text import TextStream
from gptmill.tokenizer import Tokenizer

StopReason = Literal["end_of_text", "stop_token", "stop_string", "length"]


class Decoder(Protocol):
    """A language model and its cache of one batch. It holds at least `context_length` tokens."""

    vocabulary_size: int
    context_length: int

    def prefill(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Start a fresh cache with ids [B, T] int64, padded on the left where mask [B, T] is 0.

        Returns:
            logits [B, V] float32 of the token after the last position.
        """

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Add one token to each sequence, ids [B]; logits [B, V] float32 of the next."""

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch, ascending; the others are finished."""


@dataclass(frozen=True)
class Completion:
    """What was generated. `ids` leave out the token that ended the response, and with a stop
    string they may run past the end of `text`, which leaves it out."""

    prompt_ids: list[int]
    ids: list[int]
    text: str
    stop_reason: StopReason


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    options: SamplingOptions,
    indices: Sequence[int] | None = None,
) -> list[Completion]:
    """Continue every prompt, text or token ids, as one batch; completions in the same order.

    An empty prompt starts from the token that begins a text, GPT-2's end-of-text token. `indices`
    number the prompts within a job of several batches: a prompt's random draws follow its number,
    not its batch.

    Raises:
        UserError: a prompt has ids that the model does not know; logits that are not finite.
    """
    sequences = [_start(decoder, tokenizer, prompt, options) for prompt in prompts]
    for _ in _steps(decoder, tokenizer, sequences, options, indices):
        pass
    return [sequence.completion() for sequence in sequences]


def stream(
    decoder: Decoder, tokenizer: Tokenizer, prompt: str | Sequence[int], options: SamplingOptions
) -> Generator[str, None, Completion]:
    """The text of `generate` in pieces, as soon as each is certain; returns the completion.

    No piece splits a character or shows any part of a stop string.
    """
    sequence = _start(decoder, tokenizer, prompt, options)
    for pieces in _steps(decoder, tokenizer, [sequence], options, None):
        if pieces[0]:
            yield pieces[0]
    return sequence.completion()


class GrowingSequence:
    """One prompt and its response so far: the window the model sees, the text, why it ended."""

    def __init__(
        self,
        prompt_ids: list[int],
        tokenizer: Tokenizer,
        options: SamplingOptions,
        context_length: int,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []
        self.stop_reason: StopReason | None = None
        self._tokens = list(prompt_ids)
        self._start = max(0, len(prompt_ids) - context_length)
        self._context_length = context_length
        self._options = options
        self._end_of_text = tokenizer.end_of_text
        self._text = TextStream(tokenizer, options.stop_strings)

    def accept(self, token: int) -> str:
        """Add the token chosen; return the text that may be shown now."""
        if token == self._end_of_text:
            return self._finish("end_of_text")
        if token in self._options.stop_tokens:
            return self._finish("stop_token")
        self.ids.append(token)
        self._tokens.append(token)
        piece = self._text.push(token)
        if self._text.stopped:
            return piece + self._finish("stop_string")
        if len(self.ids) == self._options.max_new_tokens:
            return piece + self._finish("length")
        return piece

    def slide(self) -> bool:
        """Cut a window that outgrew the context to its last half; return whether it did."""
        if len(self._tokens) - self._start <= self._context_length:
            return False
        self._start = len(self._tokens) - max(1, self._context_length // 2)
        return True

    def window(self) -> list[int]:
        """The tokens that the model sees."""
        return self._tokens[self._start :]

    def completion(self) -> Completion:
        assert self.stop_reason is not None
        return Completion(self.prompt_ids, self.ids, self._text.text, self.stop_reason)

    def _finish(self, reason: StopReason) -> str:
        self.stop_reason = reason
        return self._text.finish()


def _start(
    decoder: Decoder, tokenizer: Tokenizer, prompt: str | Sequence[int], options: SamplingOptions
) -> GrowingSequence:
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    ids = ids or [tokenizer.beginning_of_text]
    if not 0 <= min(ids) <= max(ids) < decoder.vocabulary_size:
        raise UserError(
            f"the prompt has token ids from {min(ids)} to {max(ids)}, the model knows 0 to "
            f"{decoder.vocabulary_size - 1}: use the tokenizer saved beside the model"
        )
    return GrowingSequence(ids, tokenizer, options, decoder.context_length)


def _steps(
    decoder: Decoder,
    tokenizer: Tokenizer,
    sequences: list[GrowingSequence],
    options: SamplingOptions,
    indices: Sequence[int] | None,
) -> Iterator[list[str]]:
    """Advance all by a token at a time until each has ended; yield the new text of those that
    were still growing."""
    if not sequences:
        return
    sampler = Sampler(options, [sequence.prompt_ids for sequence in sequences], indices)
    logits, held = _prefill(decoder, sequences)
    while True:
        # A padded vocabulary has entries that no tokenizer can decode.
        tokens = sampler.next_tokens(logits[:, : tokenizer.vocabulary_size])
        yield [sequence.accept(int(token)) for sequence, token in zip(sequences, tokens)]
        growing = [row for row, s in enumerate(sequences) if s.stop_reason is None]
        if not growing:
            return
        slid = [sequences[row].slide() for row in growing]
        rows = np.array(growing)
        if len(growing) < len(sequences):
            sequences, tokens = [sequences[row] for row in growing], tokens[rows]
            sampler.keep(rows)
            decoder.keep(rows)
        # Padding counts in the cache, so that it can be full before any window is.
        if any(slid) or held == decoder.context_length:
            logits, held = _prefill(decoder, sequences)
        else:
            logits, held = decoder.step(tokens), held + 1


def _prefill(decoder: Decoder, sequences: list[GrowingSequence]) -> tuple[np.ndarray, int]:
    """Logits of the next tokens, and how many tokens the cache holds, padding included."""
    ids, mask = left_padded([sequence.window() for sequence in sequences])
    return decoder.prefill(ids, mask), ids.shape[1]
