"""A sequence classifier on GPT-2, laid out as Hugging Face's `GPT2ForSequenceClassification`."""

import torch
from torch import Tensor, nn

from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2, Transformer, initialize


class GPT2Classifier(nn.Module):
    """Transformer and a bias-free head `score` on one position of each sequence."""

    def __init__(self, config: GPT2Config, labels: int) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.score = nn.Linear(config.width, labels, bias=False)
        initialize(self, config.layers)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [B, labels] read at each sequence's last real token.

        Args:
            ids: [B, T], padded on the right.
            attention_mask: [B, T], 1 for real tokens; None reads the last position, padded or
                not, which is the book's read-out.
        """
        # Padding follows the text, so that causality alone hides it: no mask inside.
        hidden = self.transformer(ids)
        if attention_mask is None:
            return self.score(hidden[:, -1])
        last = attention_mask.sum(dim=1) - 1
        return self.score(hidden[torch.arange(len(ids), device=ids.device), last])


def random_language_model(config: GPT2Config) -> GPT2:
    """The architecture without what it learnt: weights of deviation 1/√width, as suits it."""
    deviation = config.width**-0.5
    return GPT2(config, deviation, deviation)


def with_classification_head(model: GPT2, labels: int) -> GPT2Classifier:
    """A classifier on a language model's transformer; only the head is new."""
    classifier = GPT2Classifier(model.config, labels)
    classifier.transformer = model.transformer
    return classifier.to(model.transformer.wte.weight.device)
