"""Texts as vectors: what a language model holds of them after its last layer.

Shapes: B batch, T tokens padded on the right, C channels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptmill.batching import batches_of_tokens, right_padded
from gptmill.card import GENERATE, ModelCard
from gptmill.runtime.session import BATCH_TOKENS, open_session

LAST_LAYER = "LayerNormalization"  # the last one is what the output head reads


class Embedder:
    """The mean of a text's hidden states after the last LayerNorm, scaled to length 1.

    The graph is cut there, so that no logits are computed. Pages of the weights are shared with a
    `Generator` over the same folder.

    Args:
        folder: of a language model, as `gptmill.export.onnx` writes it.
        threads: as for `open_session`.

    Raises:
        UserError: a file is missing or damaged, or the model is a classifier.
    """

    def __init__(self, folder: Path | str, threads: int | None = None) -> None:
        folder = Path(folder)
        self._config = ModelCard.read(folder).require(GENERATE, folder).architecture
        self._session = open_session(folder, threads, LAST_LAYER)
        [output] = self._session.get_outputs()
        self._output = output.name

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors [len(texts), C] float32 of texts given as token ids, none empty or longer than
        the context; each as if it were alone."""
        vectors = np.empty((len(texts), self._config.width), np.float32)
        for rows in batches_of_tokens([len(text) for text in texts], BATCH_TOKENS):
            vectors[rows] = self._batch([texts[row] for row in rows])
        return vectors

    def _batch(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        ids, mask = right_padded(texts)
        width = ids.shape[1]
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": np.broadcast_to(np.arange(width), ids.shape),
        }
        states = self._session.run([self._output], {**feeds, **self._no_past(len(texts))})[0]
        states = states.reshape(len(texts), width, -1).astype(np.float64)
        means = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def _no_past(self, batch: int) -> dict[str, np.ndarray]:
        names = [value for value in self._session.get_inputs() if "past" in value.name]
        return {
            value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
            for value in names
        }
