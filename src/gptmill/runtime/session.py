"""Inference on an ONNX folder with ONNX Runtime, numpy and the tokenizer: no PyTorch.

Shapes: B batch, T new tokens, P tokens held, S = P + T, H heads, D head width, V vocabulary,
K labels.
"""

import math
from collections import abc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from gptmill.batching import batches_of_tokens, right_padded
from gptmill.card import GENERATE, ModelCard
from gptmill.errors import UserError, first_line
from gptmill.generate.loop import Completion, generate, stream
from gptmill.generate.sampling import SamplingOptions
from gptmill.reading import mean_of_pieces
from gptmill.runtime.mapping import mapped_model
from gptmill.seal import check_seal
from gptmill.tokenizer import Tokenizer, load_tokenizer

MODEL_FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
BATCH_TOKENS = 2048  # padded tokens in one classifier batch: enough work for every core
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
SPINNING = "session.intra_op.allow_spinning"
ERRORS_ONLY = 3  # ONNX Runtime's log level


def open_session(
    folder: Path, threads: int | None = None, output_of: str = ""
) -> ort.InferenceSession:
    """Load a folder's `model.onnx` on the CPU.

    Args:
        threads: CPU threads of one operator; None takes every physical core.
        output_of: as for `mapped_model`.

    Raises:
        UserError: the file is missing, damaged, or without its data file.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: export the model first, or name another folder")
    check_seal(folder)
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry(DATA_FOLDER, str(folder))
    # Waiting at full speed gains nothing on a quiet machine and loses half beside a busy one.
    options.add_session_config_entry(SPINNING, "0")
    try:
        model = mapped_model(path, output_of)
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # every failure is a class of its own, none documented
        raise UserError(f"{path} cannot be loaded, export it again: {first_line(error)}") from None


class OnnxDecoder:
    """A `Decoder` over ONNX Runtime, its cache in two buffers that take turns.

    The graph joins past and new keys and values into one tensor. A step therefore reads one
    buffer and writes the other, both bound to ONNX Runtime where they lie: beyond that one copy
    of the past, which the standard interface asks for, nothing is allocated or copied.

    Args:
        session: a language model's, from `open_session`.
        context_length: tokens that the model has positions for.
    """

    def __init__(self, session: ort.InferenceSession, context_length: int) -> None:
        self._session = session
        inputs = {value.name: value.shape for value in session.get_inputs()}
        outputs = {value.name: value.shape for value in session.get_outputs()}
        self.context_length = context_length
        self.vocabulary_size = outputs["logits"][-1]
        self._past = [name for name in inputs if name.startswith("past_key_values.")]
        self._present = [name for name in outputs if name.startswith("present.")]
        if not self._past:
            raise UserError("this ONNX model has no cache: it is not a language model")
        _, self._heads, _, self._head_width = inputs[self._past[0]]
        self._buffers = [np.empty(0, np.float32), np.empty(0, np.float32)]
        self._length = 0  # tokens held by each row, padding included
        self._padding = np.zeros(0, np.int64)  # of each row, on the left

    def sibling(self) -> "OnnxDecoder":
        """An empty cache over the same session."""
        return OnnxDecoder(self._session, self.context_length)

    def prefill(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Start a fresh cache with ids [B, T]; logits [B, V] after the last position."""
        self.begin(ids.shape[1] - mask.sum(axis=1))
        return self.extend(ids)[:, 0]

    def begin(self, padding: np.ndarray, held: Sequence[Sequence[np.ndarray]] = ()) -> None:
        """Empty the cache for sequences that `extend` reads in pieces, so many [B] of the first
        tokens being padding.

        Args:
            held: of each sequence the keys and values of its first tokens, in parts
                [2·layers, H, t, D] as `read` gives them; all end in the same column.
        """
        lengths = [sum(part.shape[2] for part in parts) for parts in held]
        self._length, self._padding = max(lengths, default=0), padding
        past = self._view(0, len(padding), self._length)
        for row, tokens in enumerate(lengths):
            first = self._length - tokens
            past[:, row, :, :first] = 0  # masked, but NaN × 0 is NaN
            if tokens:
                np.concatenate(held[row], axis=2, out=past[:, row, :, first:])

    def held_by(self, row: int) -> int:
        """Tokens of a sequence that are in the cache."""
        return max(0, self._length - int(self._padding[row]))

    def read(self, row: int, start: int, stop: int) -> np.ndarray:
        """A copy of the keys and values [2·layers, H, t, D] of a sequence's tokens from `start` to
        before `stop`."""
        first = int(self._padding[row])
        past = self._view(0, len(self._padding), self._length)
        return past[:, row, :, first + start : first + stop].copy()

    def extend(self, ids: np.ndarray, *, every: bool = False) -> np.ndarray:
        """Add tokens [B, T] to the sequences; logits [B, 1, V] after the last of them, or
        [B, T, V] after every one."""
        columns = self._length + np.arange(ids.shape[1])
        positions = np.maximum(columns - self._padding[:, None], 0)
        return self._run(ids, positions, every=every)

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Add one token to each sequence, ids [B]; logits [B, V] of the next."""
        return self.extend(ids[:, None])[:, 0]

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch, perhaps some of them twice, and without columns that
        pad all of them."""
        past = self._view(0, len(self._padding), self._length)
        padding = self._padding[rows]
        first = int(padding.min()) if len(rows) else self._length
        kept = self._view(1, len(rows), self._length - first)
        for at, row in enumerate(rows):
            kept[:, at] = past[:, row, :, first:]
        self._buffers.reverse()
        self._length -= first
        self._padding = padding - first

    def join(self, other: "OnnxDecoder") -> None:
        """Take in another decoder's rows after its own, the shorter cache padded on the left."""
        length = max(self._length, other._length)
        joined = self._view(1, len(self._padding) + len(other._padding), length)
        start, paddings = 0, []
        for decoder in (self, other):
            rows, first = len(decoder._padding), length - decoder._length
            part = joined[:, start : start + rows]
            part[..., :first, :] = 0  # masked, but NaN × 0 is NaN
            part[..., first:, :] = decoder._view(0, rows, decoder._length)
            paddings.append(decoder._padding + first)
            start += rows
        self._buffers.reverse()
        self._length, self._padding = length, np.concatenate(paddings)

    def _run(self, ids: np.ndarray, positions: np.ndarray, *, every: bool) -> np.ndarray:
        B, T = ids.shape
        total = self._length + T
        past = self._view(0, B, self._length)
        present = self._view(1, B, total)
        logits = np.empty((B, T if every else 1, self.vocabulary_size), np.float32)
        binding = self._session.io_binding()
        feeds = {
            "input_ids": np.ascontiguousarray(ids),
            "attention_mask": (np.arange(total) >= self._padding[:, None]).astype(np.int64),
            "position_ids": np.ascontiguousarray(positions),
            "num_logits_to_keep": np.array([0 if every else 1]),
        }
        for name, array in feeds.items():
            _bind_input(binding, name, array)
        for name, array in zip(self._past, past):
            _bind_input(binding, name, array)
        _bind_output(binding, "logits", logits)
        for name, array in zip(self._present, present):
            _bind_output(binding, name, array)
        self._session.run_with_iobinding(binding)
        self._buffers.reverse()
        self._length = total
        return logits

    def _view(self, which: int, batch: int, length: int) -> np.ndarray:
        """The front of a buffer as keys and values of every layer, [2·layers, B, H, S, D]."""
        shape = (len(self._past), batch, self._heads, length, self._head_width)
        size = math.prod(shape)
        if self._buffers[which].size < size:
            # Twice what is needed: memory that is never written to costs nothing.
            self._buffers[which] = np.empty(2 * size, np.float32)
        return self._buffers[which][:size].reshape(shape)


def _bind_input(binding: ort.IOBinding, name: str, array: np.ndarray) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


class Generator:
    """Text from the language model of an ONNX folder.

    `prompt_style` is how an instruction model wants its prompts (`gptmill.prompt`), or None.

    Args:
        folder: as `gptmill.export.onnx` writes it.
        threads: as for `open_session`.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, folder: Path | str, threads: int | None = None) -> None:
        folder = Path(folder)
        card = ModelCard.read(folder).require(GENERATE, folder)
        with ThreadPoolExecutor(1) as pool:  # both take a while, and neither needs the other
            tokenizer = pool.submit(load_tokenizer, folder)
            session = open_session(folder, threads)
            self.tokenizer: Tokenizer = tokenizer.result()
        self.decoder = OnnxDecoder(session, card.architecture.context_length)
        self.prompt_style = card.prompt_style
        self.stop_tokens = card.stop_tokens

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        options: SamplingOptions,
        indices: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Continue all prompts as one batch; the model's own stop tokens end a response too.
        `gptmill.generate.loop.generate` says the rest."""
        options = self._with_stops(options)
        return generate(self.decoder, self.tokenizer, prompts, options, indices)

    def stream(
        self, prompt: str | Sequence[int], options: SamplingOptions
    ) -> abc.Generator[str, None, Completion]:
        """The text in pieces as it comes; returns the completion."""
        return stream(self.decoder, self.tokenizer, prompt, self._with_stops(options))

    def _with_stops(self, options: SamplingOptions) -> SamplingOptions:
        return replace(options, stop_tokens=(*options.stop_tokens, *self.stop_tokens))


@dataclass(frozen=True)
class Classification:
    """The likeliest label, and the probability of every label."""

    label: str
    probabilities: dict[str, float]


class Classifier:
    """Labels from the classifier of an ONNX folder. Arguments and errors as for `Generator`."""

    def __init__(self, folder: Path | str, threads: int | None = None) -> None:
        folder = Path(folder)
        config, reading = ModelCard.read(folder).classifier(folder)
        self.labels = list(reading.labels)
        self.tokenizer = load_tokenizer(folder)
        self._session = open_session(folder, threads)
        maximum_length = reading.maximum_length or config.context_length
        self.reading = replace(reading, maximum_length=maximum_length)
        # The book's read-out sees the padding, which therefore is as long as in training.
        self._width = self.reading.maximum_length if reading.readout == "padded_last" else None

    def classify(self, texts: Sequence[str]) -> list[Classification]:
        """Classify each text, long ones read as in training; results in the same order.

        Raises:
            UserError: a text is empty.
        """
        probabilities = self.reading.probabilities(self.logits(self.encode(texts)))
        chosen = self.reading.choose(probabilities)
        return [
            Classification(self.labels[label], dict(zip(self.labels, row.tolist())))
            for label, row in zip(chosen, probabilities)
        ]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; an empty text is a `UserError`."""
        ids = self.tokenizer.encode_batch(texts)
        for row, text in enumerate(ids):
            if not text:
                raise UserError(f"text {row} is empty: there is nothing to classify")
        return ids

    def logits(self, ids: Sequence[list[int]]) -> np.ndarray:
        """Logits [len(ids), K] float32; of a text read in windows their mean."""
        parts = [self.reading.pieces(text) for text in ids]
        pieces = [piece for text in parts for piece in text]
        logits = np.empty((len(pieces), len(self.labels)), np.float32)
        for rows in batches_of_tokens([len(text) for text in pieces], BATCH_TOKENS, self._width):
            inputs = self.padded([pieces[row] for row in rows])
            logits[rows] = self._session.run(["logits"], dict(zip(INPUTS, inputs)))[0]
        return mean_of_pieces(logits, [len(text) for text in parts])

    def padded(self, pieces: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask [B, T] of one batch of texts cut as in training, padded on the right."""
        return right_padded(pieces, self.tokenizer.end_of_text, self._width)
