"""Functions completed from signature and docstring: what share of them is Python."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptmill.batching import batches_by_length
from gptmill.data.python_functions import headers, is_whole_function
from gptmill.generate.loop import Decoder, generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.tokenizer import Tokenizer

BATCH = 16


class Attempt(NamedTuple):
    """A header, its continuation, and whether both together are a function with a body."""

    header: str
    completion: str
    whole: bool


def complete_functions(
    decoder: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    count: int,
    options: SamplingOptions,
) -> list[Attempt]:
    """Complete up to `count` functions of the modules `texts`, chosen by the options' seed among
    those whose header leaves room for `max_new_tokens` in the context.

    A text that begins or ends within a function is left out. A completion that ran out of tokens
    counts as it stands.
    """
    room = decoder.context_length - options.max_new_tokens
    found = [header for text in texts for header in headers(text)]
    fitting = [h for h, ids in zip(found, tokenizer.encode_batch(found)) if len(ids) <= room]
    order = np.random.default_rng(options.seed).permutation(len(fitting))[:count]
    chosen = [fitting[i] for i in order]
    attempts: list[Attempt] = []
    for rows in batches_by_length([len(header) for header in chosen], BATCH):
        prompts = [chosen[row] for row in rows]
        numbers = range(len(attempts), len(attempts) + len(prompts))
        for header, completion in zip(
            prompts, generate(decoder, tokenizer, prompts, options, numbers)
        ):
            whole = is_whole_function(header + completion.text)
            attempts.append(Attempt(header, completion.text, whole))
    return attempts


def completion_metrics(attempts: Sequence[Attempt]) -> dict[str, float]:
    """`completions/tried`, and `completions/parse_share` if there were any."""
    if not attempts:
        return {"completions/tried": 0}
    share = sum(attempt.whole for attempt in attempts) / len(attempts)
    return {"completions/tried": len(attempts), "completions/parse_share": share}


def as_text(attempts: Sequence[Attempt]) -> str:
    """All of them, to be read."""
    return "\n\n".join(
        f"# {'whole' if attempt.whole else 'broken'}\n{attempt.header}{attempt.completion}"
        for attempt in attempts
    )
