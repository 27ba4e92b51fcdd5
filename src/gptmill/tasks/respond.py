"""Answers to instruction entries, generated in batches."""

from itertools import chain
from typing import Any

from gptmill.batching import batches_by_length
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
    chosen = batches_by_length([len(format_prompt(e, style)) for e in entries], batch_size)

    def answer(rows: list[int]) -> list[Completion]:
        decoder = TorchDecoder(model)  # each has a cache of its own
        return generate(decoder, tokenizer, [prompts[i] for i in rows], options, indices=rows)

    with runtime.workers(model) as workers:
        batches = runtime.map(workers, answer, chosen)
    completions = dict(zip(chain(*chosen), chain(*batches), strict=True))
    return [
        {
            **entry,
            "response": completions[i].text.strip(),
            "stop_reason": completions[i].stop_reason,
        }
        for i, entry in enumerate(entries)
    ]
