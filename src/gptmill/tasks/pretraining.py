"""The recipe of pretraining: windows of tokens, held-out likelihood, samples along the way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptmill.data.mixture import parts
from gptmill.data.tokens import TokenSplit
from gptmill.engine.hooks import Hook, every
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import TrainState
from gptmill.errors import UserError
from gptmill.evaluate.python_completion import as_text, complete_functions, completion_metrics
from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.likelihood import perplexity
from gptmill.model.config import flops_per_token
from gptmill.params import Pretrain
from gptmill.tasks.language_model import (
    LanguageModelTask,
    Likelihood,
    split_likelihood,
    training_batches,
)
from gptmill.tasks.recipe import Note, Result
from gptmill.tokenizer import load_tokenizer
from gptmill.weights.foundation import starting_model


class Pretraining:
    """A `Recipe`: a GPT-2 from scratch, or a foundation that is continued, on token shards."""

    def __init__(self, section: Pretrain, tokens: Path, runtime: Runtime, seed: int) -> None:
        self._section, self._runtime = section, runtime
        self.tokenizer = load_tokenizer(tokens / "tokenizer")
        training, self._validation = TokenSplit(tokens, "train"), TokenSplit(tokens, "validation")
        if len(self._validation) < 2:
            raise UserError(
                f"{tokens}: the validation split has {len(self._validation)} tokens, and training "
                "chooses by it: add text, or raise tokenize.validation_fraction"
            )
        self._window = section.model.context_length
        self.model, self._origin = starting_model(section, self.tokenizer)
        self.model.to(runtime.device)
        self._options = SamplingOptions(**dict(section.sampling), seed=seed)
        self.task = LanguageModelTask()
        self.batches = training_batches(
            training, section.rows, section.training.batch_size, self._window, seed
        )
        self.steps = 0 if section.epochs else section.steps

    def evaluate(self) -> dict[str, float]:
        limit = self._section.evaluation_tokens
        corpora = parts(self._validation)
        if not corpora:
            return self._likelihood(self._window, limit).metrics("validation/")
        # The split's first tokens would be those of one corpus.
        found = self._by_corpus(self._window, max(2, limit // len(corpora)))
        loss = float(np.average(list(found.values()), weights=[len(part) for part in corpora]))
        return {"validation/loss": loss, "validation/perplexity": perplexity(loss)} | found

    def hooks(self, note: Note) -> Sequence[Hook]:
        def sample(state: TrainState) -> None:
            prompt = self._section.prompt
            with state.gathered():
                decoder = TorchDecoder(self.model)
                text = generate(decoder, self.tokenizer, [prompt], self._options)[0].text
            state.curves.setdefault("samples", []).append({"step": state.step, "text": text})
            note("samples", state.step, prompt + text)

        return [every(self._section.sample_every, sample)]

    def finish(self, state: TrainState, note: Note) -> Result:
        held_out = self._validation
        metrics: dict[str, Any] = self._likelihood(self._section.evaluation_stride).metrics(
            "validation/"
        )
        metrics |= self._by_corpus(self._section.evaluation_stride)
        metrics["train/tokens"] = state.targets
        if held_out.nats is not None:
            metrics["validation/floor_loss"] = held_out.nats / held_out.tokens
        if self._section.completions:
            texts = held_out.texts(self.tokenizer, len(held_out))
            count, decoder = self._section.completions, TorchDecoder(self.model)
            attempts = complete_functions(decoder, self.tokenizer, texts, count, self._options)
            metrics |= completion_metrics(attempts)
            note("completions", state.step, as_text(attempts))
        flops = flops_per_token(self.model.config, self._window)
        return Result(metrics, origin=self._origin, flops_per_target=flops)

    def _by_corpus(self, stride: int, limit: int | None = None) -> dict[str, float]:
        """Of a mixture each corpus's own loss."""
        return {
            f"validation/{part.name}/loss": split_likelihood(
                self.model, part, self._window, stride, self._runtime, limit
            ).loss
            for part in parts(self._validation)
        }

    def _likelihood(self, stride: int, limit: int | None = None) -> Likelihood:
        return split_likelihood(
            self.model, self._validation, self._window, stride, self._runtime, limit
        )
