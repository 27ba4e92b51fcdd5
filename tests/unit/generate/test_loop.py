"""The loop on a random GPT-2: batches, stopping, streaming, sliding beyond the context."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gptmill.batching import left_padded
from gptmill.errors import UserError
from gptmill.generate.loop import Completion, generate, stream
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import BytePairTokenizer, byte_pairs_from_merges

CONTEXT = 24
PROMPTS = ["hello", "", "a prompt that is quite a lot longer than the context is", "ü🎉", "xyz"]
GREEDY = SamplingOptions(max_new_tokens=60)
SAMPLED = replace(GREEDY, temperature=1.0, top_k=40, top_p=0.95, min_p=0.01, seed=7)
PENALISED = replace(SAMPLED, repetition_penalty=1.3, stop_strings=("a", "\x07"), stop_tokens=(3,))


class ScriptedDecoder:
    """A decoder whose likeliest tokens are given: token `script[n]` after n generated ones.

    The real part would be a model trained to say the line; what is tested is the loop.
    """

    vocabulary_size = 300
    context_length = 64

    def __init__(self, script: list[int]) -> None:
        self.script = script

    def prefill(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        self.steps, self.batch = 0, len(ids)
        return self._logits()

    def step(self, ids: np.ndarray) -> np.ndarray:
        self.steps += 1
        return self._logits()

    def keep(self, rows: np.ndarray) -> None:
        self.batch = len(rows)

    def _logits(self) -> np.ndarray:
        logits = np.zeros((self.batch, self.vocabulary_size), np.float32)
        logits[:, self.script[self.steps]] = 1
        logits[:, 290] = 2  # an entry of a padded vocabulary: never to be chosen
        return logits


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return byte_pairs_from_merges([])


@pytest.fixture(scope="module")
def model(tokenizer: BytePairTokenizer) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(tokenizer.vocabulary_size, CONTEXT, layers=2, heads=2, width=32))
    for parameter in model.parameters():  # logits far enough apart for an argmax to be certain
        parameter.data.mul_(5)
    return model


@pytest.fixture(scope="module")
def decoder(model: GPT2) -> TorchDecoder:
    return TorchDecoder(model)


def said(tokenizer: BytePairTokenizer, text: str, options: SamplingOptions) -> Completion:
    decoder = ScriptedDecoder([*tokenizer.encode(text), tokenizer.end_of_text])
    found = generate(decoder, tokenizer, ["prompt"], options)[0]
    streaming = stream(decoder, tokenizer, "prompt", options)
    pieces = []
    while True:
        try:
            pieces.append(next(streaming))
        except StopIteration as end:
            assert end.value == found
            break
    assert "".join(pieces) == found.text
    assert all(pieces)
    return found


@pytest.mark.parametrize("options", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "all"])
def test_a_batch_gives_what_each_row_gives_alone(
    decoder: TorchDecoder, tokenizer: BytePairTokenizer, options: SamplingOptions
) -> None:
    batch = generate(decoder, tokenizer, PROMPTS, options)
    alone = [
        generate(decoder, tokenizer, [prompt], options, indices=[index])[0]
        for index, prompt in enumerate(PROMPTS)
    ]
    assert batch == alone
    some = generate(decoder, tokenizer, [PROMPTS[3], PROMPTS[0]], options, indices=[3, 0])
    assert some == [batch[3], batch[0]]
    assert len({tuple(completion.ids) for completion in batch}) == len(PROMPTS)


def test_seeds_reproduce(decoder: TorchDecoder, tokenizer: BytePairTokenizer) -> None:
    first = generate(decoder, tokenizer, PROMPTS, SAMPLED)
    assert generate(decoder, tokenizer, PROMPTS, SAMPLED) == first
    other = generate(decoder, tokenizer, PROMPTS, replace(SAMPLED, seed=8))
    assert all(a.ids != b.ids for a, b in zip(first, other))


@torch.no_grad()
def test_beyond_the_context_the_window_is_cut_to_its_last_half(
    model: GPT2, decoder: TorchDecoder, tokenizer: BytePairTokenizer
) -> None:
    for prompt in PROMPTS:
        found = generate(decoder, tokenizer, [prompt], GREEDY)[0]
        text = tokenizer.encode(prompt) or [tokenizer.end_of_text]
        window, expected = text[-CONTEXT:], []
        for _ in range(GREEDY.max_new_tokens):
            if len(window) > CONTEXT:
                window = window[-(CONTEXT // 2) :]
            expected.append(int(model(torch.tensor([window]))[0, -1].argmax()))
            window.append(expected[-1])
        assert found == Completion(text, expected, tokenizer.decode(expected), "length")


def test_padding_may_fill_the_cache_before_any_window_is_full(
    decoder: TorchDecoder, tokenizer: BytePairTokenizer
) -> None:
    # The long row ends at its first token, so that the short one goes on behind its padding.
    long, short = [1] * (CONTEXT - 1), [2]
    ending = generate(decoder, tokenizer, [long], replace(GREEDY, max_new_tokens=1))[0].ids[0]
    options = replace(GREEDY, max_new_tokens=CONTEXT - 2, stop_tokens=(ending,))
    alone = generate(decoder, tokenizer, [short], options)[0]
    assert ending not in alone.ids
    assert len(alone.ids) == CONTEXT - 2
    assert generate(decoder, tokenizer, [long, short], options)[1] == alone


def test_end_of_text_is_left_out(tokenizer: BytePairTokenizer) -> None:
    found = said(tokenizer, "Hi.", GREEDY)
    assert (found.text, found.stop_reason) == ("Hi.", "end_of_text")
    assert found.ids == tokenizer.encode("Hi.")
    assert found.prompt_ids == tokenizer.encode("prompt")


def test_a_stop_token_is_left_out(tokenizer: BytePairTokenizer) -> None:
    found = said(tokenizer, "Hi. Ho", replace(GREEDY, stop_tokens=tuple(tokenizer.encode("."))))
    assert (found.text, found.stop_reason) == ("Hi", "stop_token")


def test_a_stop_string_is_left_out_whole(tokenizer: BytePairTokenizer) -> None:
    found = said(tokenizer, "é#1 ### x", replace(GREEDY, stop_strings=("###", "zz")))
    assert (found.text, found.stop_reason) == ("é#1 ", "stop_string")
    assert found.ids == tokenizer.encode("é#1 ###")


def test_what_a_stop_string_held_back_comes_at_the_end(tokenizer: BytePairTokenizer) -> None:
    options = replace(GREEDY, stop_strings=("###",), max_new_tokens=4)
    found = said(tokenizer, "ab## rest", options)
    assert (found.text, found.stop_reason) == ("ab##", "length")


def test_a_response_cut_inside_a_character_ends_in_a_replacement(
    tokenizer: BytePairTokenizer,
) -> None:
    assert said(tokenizer, "a🎉", replace(GREEDY, max_new_tokens=3)).text == "a\ufffd"


def test_finished_rows_leave_the_batch(model: GPT2, tokenizer: BytePairTokenizer) -> None:
    class Counting(TorchDecoder):
        batches: list[int] = []

        def step(self, ids: np.ndarray) -> np.ndarray:
            self.batches.append(len(ids))
            return super().step(ids)

    options = replace(GREEDY, max_new_tokens=8)
    prompts = [*PROMPTS[:2], *PROMPTS[3:]]  # without the one that slides at once
    alone = [generate(TorchDecoder(model), tokenizer, [p], options)[0].ids for p in prompts]
    stop = next(ids[2] for ids in alone if ids[2] not in ids[:2])
    stopping = replace(options, stop_tokens=(stop,))
    counting = Counting(model)
    found = generate(counting, tokenizer, prompts, stopping)
    assert [c.ids for c in found] == [[*ids, stop][: [*ids, stop].index(stop)] for ids in alone]
    # The first token comes of the prefill; a stop token is generated too, though not kept.
    steps = [len(c.ids) - (c.stop_reason == "length") for c in found]
    assert len(set(steps)) > 1
    assert counting.batches == [sum(n > at for n in steps) for at in range(max(steps))]


def test_closing_a_stream_ends_it(decoder: TorchDecoder, tokenizer: BytePairTokenizer) -> None:
    streaming = stream(decoder, tokenizer, "hello", replace(GREEDY, max_new_tokens=10**9))
    assert next(streaming)
    streaming.close()
    assert list(streaming) == []


def test_no_prompts_give_no_completions(
    decoder: TorchDecoder, tokenizer: BytePairTokenizer
) -> None:
    assert generate(decoder, tokenizer, [], GREEDY) == []


@pytest.mark.parametrize("ids", [[3, 257], [-1, 3]])
def test_ids_that_the_model_does_not_know_are_refused(
    decoder: TorchDecoder, tokenizer: BytePairTokenizer, ids: list[int]
) -> None:
    with pytest.raises(UserError, match="the model knows 0 to 256: use the tokenizer saved"):
        generate(decoder, tokenizer, [[1], ids], GREEDY)


def test_left_padding() -> None:
    ids, mask = left_padded([[5], [6, 7, 8]])
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
