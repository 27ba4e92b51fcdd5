"""The PyTorch side of generation: GPT-2 over its preallocated cache.

Shapes: B batch, T prompt tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from gptmill.model.gpt2 import GPT2

ROOM = 256  # tokens a fresh cache can take beyond the prompt before it grows


class TorchDecoder:
    """A `Decoder` on the model's own device and in its own precision.

    The model may be in the middle of its training: it is in evaluation mode only while it
    computes logits, and its parameters are read as they are at that moment.
    """

    def __init__(self, model: GPT2) -> None:
        self.model = model
        self.vocabulary_size = model.config.vocabulary_size
        self.context_length = model.config.context_length
        self._one_token = model.transformer.step()

    def prefill(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Start a fresh cache with ids [B, T]; logits [B, V] after the last position."""
        with _inference(self.model):
            B, T = ids.shape
            self._cache = self.model.new_cache(B, min(T + ROOM, self.context_length))
            real = self._on_device(mask)
            self._positions = real.sum(dim=1)  # of the next tokens
            ragged = not mask.all()
            self._mask = self._additive_mask(real) if ragged else None
            hidden = self.model.transformer(
                self._on_device(ids), real if ragged else None, cache=self._cache
            )
            return self._logits(hidden[:, -1])

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Add one token to each sequence, ids [B]; logits [B, V] of the next."""
        with _inference(self.model):
            hidden = self._one_token(self._on_device(ids), self._positions, self._mask, self._cache)
            self._positions += 1
            return self._logits(hidden)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows: moved once, the finished ones no longer cost at every step."""
        with _inference(self.model):
            kept = self._on_device(rows)
            self._cache.keep(rows.tolist())
            self._positions = self._positions[kept]
            self._mask = None if self._mask is None else self._mask[kept]

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.model.transformer.wte.weight.device)

    def _additive_mask(self, real: Tensor) -> Tensor:
        """[B, 1, 1, context]: minus infinity where a prompt is padded, 0 for all that follows."""
        shape = (len(real), 1, 1, self.context_length)
        mask = torch.zeros(shape, dtype=self.model.transformer.wte.weight.dtype, device=real.device)
        mask[:, 0, 0, : real.shape[1]].masked_fill_(real == 0, -torch.inf)
        return mask

    def _logits(self, hidden: Tensor) -> np.ndarray:
        return self.model.lm_head(hidden).float().cpu().numpy()


@contextmanager
def _inference(model: GPT2) -> Iterator[None]:
    """No gradients, no dropout; the mode the model was in comes back."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if training:
            model.train()
