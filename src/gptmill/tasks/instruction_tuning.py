"""The recipe of instruction tuning: prompts and responses, the loss on responses."""

from collections.abc import Sequence
from pathlib import Path

from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.hooks import Hook
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import TrainState
from gptmill.params import FinetuneInstructions
from gptmill.tasks.instruct import InstructionData
from gptmill.tasks.language_model import LanguageModelTask
from gptmill.tasks.recipe import Note, Result
from gptmill.tokenizer import load_tokenizer
from gptmill.weights.folder import load_language_model


class InstructionTuning:
    """A `Recipe`: the foundation, made to follow instructions in one prompt style."""

    steps = 0

    def __init__(
        self,
        section: FinetuneInstructions,
        style: str,
        foundation: Path,
        data: Path,
        runtime: Runtime,
        seed: int,
    ) -> None:
        self._style, self._runtime = style, runtime
        self.tokenizer = load_tokenizer(foundation)
        self.model = load_language_model(foundation).to(runtime.device)
        self._entries = InstructionData(
            data,
            self.tokenizer,
            style,
            section.mask_prompt,
            section.allowed_max_length,
            self.model.config.context_length,
        )
        self.task = LanguageModelTask("target_tokens" if section.mask_prompt else "tokens")
        self.batches = ShuffledBatches(
            self._entries.train,
            self._entries.collate,
            section.training.batch_size,
            seed,
            lengths=self._entries.lengths,
        )

    def evaluate(self) -> dict[str, float]:
        return self._entries.evaluate(self.model, self._runtime)

    def hooks(self, note: Note) -> Sequence[Hook]:
        return []

    def finish(self, state: TrainState, note: Note) -> Result:
        metrics = {
            "validation/loss": state.best_value,
            "validation/loss_before": state.curves["evaluation"][0]["validation/loss"],
            **self._entries.counts,
        }
        return Result(metrics, saved={"prompt_style": self._style})
