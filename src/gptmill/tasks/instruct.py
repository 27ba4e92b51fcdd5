"""Instruction following: prompts and responses to batches for next-token prediction."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from gptmill.batching import batches_by_length, right_padded
from gptmill.conversation import prompt_ids
from gptmill.engine.runtime import Runtime
from gptmill.errors import UserError
from gptmill.files import read_json
from gptmill.prompt import format_response
from gptmill.tasks.language_model import IGNORED, TokenBatch, batch_loss
from gptmill.tokenizer import Tokenizer

EVALUATION_BATCH = 32  # entries in one forward pass without gradients


class Example(NamedTuple):
    """Ids of prompt and response together, how many of them are the prompt's, and where earlier
    answers of the conversation stand among those."""

    ids: list[int]
    prompt_length: int
    answers: tuple[tuple[int, int], ...] = ()

    @property
    def first_answer(self) -> int:
        """The place of the first id that is learned."""
        return self.answers[0][0] if self.answers else self.prompt_length


def encode_entries(
    entries: list[dict[str, Any]], tokenizer: Tokenizer, style: str, maximum_length: int
) -> list[Example]:
    """Prompt and response encoded apart, so that the prompt's ids are those of generation time.

    `<|endoftext|>` ends each; what is longer than `maximum_length` tokens is cut at its end.
    """
    prompts = prompt_ids(entries, style, tokenizer)
    responses = tokenizer.encode_batch([format_response(entry, style) for entry in entries])
    return [
        Example(
            [*prompt.ids, *response, tokenizer.end_of_text][:maximum_length],
            len(prompt.ids),
            prompt.answers,
        )
        for prompt, response in zip(prompts, responses)
    ]


def collate_instructions(examples: list[Example], padding: int, mask_prompt: bool) -> TokenBatch:
    """Pad to the longest; targets are the inputs moved by one.

    The first `<|endoftext|>` stays a target, so that the model learns to stop; every padded target
    after it is ignored, and so are the prompt's own tokens when `mask_prompt` is set.
    """
    inputs, _ = right_padded([example.ids[:-1] for example in examples], padding)
    targets = np.full_like(inputs, IGNORED)
    for row, (ids, prompt_length, answers) in enumerate(examples):
        learned = [*answers, (prompt_length, len(ids))] if mask_prompt else [(1, len(ids))]
        for start, end in learned:
            first = max(0, start - 1)
            targets[row, first : end - 1] = ids[first + 1 : end]
    return TokenBatch(inputs, targets)


class InstructionData:
    """The training and validation entries of a folder, encoded for one tokenizer and style.

    Args:
        maximum_length: tokens kept of prompt and response together; 0 is `context_length`.

    Attributes:
        counts: of each split, entries whose prompt fills the window, which are left out, and
            entries whose answer is cut at the window's end.

    Raises:
        UserError: a split without an entry that can be learned from.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        style: str,
        mask_prompt: bool,
        maximum_length: int,
        context_length: int,
    ) -> None:
        self.padding = tokenizer.end_of_text
        self.mask_prompt = mask_prompt
        # One more than the context: the last token is a target only.
        length = min(maximum_length or context_length + 1, context_length + 1)
        self.counts: dict[str, int] = {}
        self.train, self.validation = (
            self._fitting(
                name,
                encode_entries(
                    read_json(folder / f"{name}.json"), tokenizer, style, np.iinfo(np.int64).max
                ),
                length,
            )
            for name in ("train", "validation")
        )

    def _fitting(self, split: str, examples: list[Example], length: int) -> list[Example]:
        """Examples with something to learn within the window, cut at its end."""
        kept = [example for example in examples if example.first_answer < length]
        cut = sum(len(example.ids) > length for example in kept)
        self.counts |= {
            f"{split}/prompt_fills_the_window": len(examples) - len(kept),
            f"{split}/answer_cut": cut,
        }
        if not kept:
            raise UserError(
                f"the {split} split has {len(examples)} entries, and none with an answer inside "
                f"the window of {length - 1} tokens: raise the model's context_length or "
                "finetune_instructions.allowed_max_length, shorten the prompts, or change "
                "prepare_instructions' fractions"
            )
        return [example._replace(ids=example.ids[:length]) for example in kept]

    @property
    def lengths(self) -> list[int]:
        return [len(example.ids) for example in self.train]

    def collate(self, examples: list[Example]) -> TokenBatch:
        return collate_instructions(examples, self.padding, self.mask_prompt)

    def evaluate(self, model: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Nats per target on the validation entries."""
        order = batches_by_length([len(e.ids) for e in self.validation], EVALUATION_BATCH)
        batches = [self.collate([self.validation[row] for row in rows]) for rows in order]
        return {"validation/loss": batch_loss(model, batches, runtime)}
