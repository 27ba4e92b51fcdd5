"""Answers to instruction entries, generated in batches."""

from typing import Any

from gptmill.conversation import prompt_ids
from gptmill.engine.runtime import Runtime
from gptmill.generate.loop import Completion, generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.gpt2 import GPT2
from gptmill.prompt import format_prompt
from gptmill.tokenizer import Tokenizer


def respond(
    model: GPT2,
    tokenizer: Tokenizer,
    entries: list[dict[str, Any]],
    style: str,
    options: SamplingOptions,
    batch_size: int,
    runtime: Runtime,
) -> list[dict[str, Any]]:
    """Each entry with its `response`, sliced by token offset, and why generation stopped.

    Entries are answered in order of length, so that a batch has little padding; the result keeps
    the entries' own order.
    """
    prompts = [prompt.ids for prompt in prompt_ids(entries, style, tokenizer)]
    order = sorted(range(len(prompts)), key=lambda i: len(format_prompt(entries[i], style)))
    chosen = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def answer(rows: list[int]) -> list[Completion]:
        decoder = TorchDecoder(model)  # each has a cache of its own
        return generate(decoder, tokenizer, [prompts[i] for i in rows], options, indices=rows)

    with runtime.workers(model) as workers:
        batches = workers.map(answer, chosen)
    completions = dict(zip(order, (one for batch in batches for one in batch), strict=True))
    return [
        {
            **entry,
            "response": completions[i].text.strip(),
            "stop_reason": completions[i].stop_reason,
        }
        for i, entry in enumerate(entries)
    ]
