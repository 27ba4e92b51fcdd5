"""Few-shot prompts and label likelihoods, against one uncached pass over prompt and label."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gptmill.errors import UserError
from gptmill.evaluate.fewshot import (
    Accuracy,
    Example,
    evaluate,
    few_shot_prompt,
    fit_prompt,
    majority_accuracy,
    plot_accuracy,
    read_task,
    score_labels,
)
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import BytePairTokenizer, byte_pairs_from_merges

TASK = [Example(f"text {i}", "spam" if i % 3 == 0 else "ham") for i in range(30)]


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return byte_pairs_from_merges([])  # bytes: every label has several tokens


@pytest.fixture(scope="module")
def model(tokenizer: BytePairTokenizer) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(tokenizer.vocabulary_size, 600, layers=2, heads=2, width=32))
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return model


class LastLabelDecoder:
    """Expects the label shown last, letter by letter, or `x` where none was shown."""

    vocabulary_size = 257
    context_length = 4000

    def __init__(self, tokenizer: BytePairTokenizer) -> None:
        self.tokenizer = tokenizer

    def prefill(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(ids), self.vocabulary_size), np.float32)
        for row, (line, real) in enumerate(zip(ids, mask)):
            *labels, open_label = self.tokenizer.decode(line[real == 1].tolist()).split("Label:")
            last = labels[-1].split("\n")[0] if len(labels) > 1 else " x"
            expected = last[len(open_label) :] if last.startswith(open_label) else ""
            logits[row, self.tokenizer.encode(expected or "?")[0]] = 9
        return logits


class WatchingDecoder(LastLabelDecoder):
    """Remembers what it was shown."""

    def __init__(self, tokenizer: BytePairTokenizer) -> None:
        super().__init__(tokenizer)
        self.seen: list[str] = []

    def prefill(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        rows = zip(ids, mask)
        self.seen.extend(self.tokenizer.decode(line[real == 1].tolist()) for line, real in rows)
        return super().prefill(ids, mask)


def test_the_prompt_shows_examples_and_leaves_the_last_label_open() -> None:
    assert few_shot_prompt([], "Hi") == "Text: Hi\nLabel:"
    found = few_shot_prompt([Example("a", "ham"), Example("b", "spam")], "Hi")
    assert found == "Text: a\nLabel: ham\n\nText: b\nLabel: spam\n\nText: Hi\nLabel:"


@torch.no_grad()
def test_label_scores_are_the_log_likelihoods(model: GPT2, tokenizer: BytePairTokenizer) -> None:
    prompts = [tokenizer.encode(text) for text in ("Text: a\nLabel:", "x", "Text: bcd efg\nLabel:")]
    labels = ["ham", "hat", "spam", "ha"]
    found = score_labels(TorchDecoder(model), tokenizer, prompts, labels, batch_size=4)
    for n, prompt in enumerate(prompts):
        for k, label in enumerate(labels):
            ids = tokenizer.encode(" " + label)
            logits = model(torch.tensor([[*prompt, *ids]]))[0].log_softmax(dim=-1)
            places = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
            expected = sum(float(logits[place, id]) for place, id in zip(places, ids))
            assert found[n, k] == pytest.approx(expected, abs=1e-4)


def test_accuracy_and_its_standard_error(tokenizer: BytePairTokenizer) -> None:
    """The decoder repeats the last label it was shown, so that the accuracy is known."""
    pool = [Example(f"example {i}", "ham") for i in range(20)] + [Example("of its kind", "spam")]
    found = evaluate(LastLabelDecoder(tokenizer), tokenizer, TASK, pool, shots=(1, 4))
    assert [result.examples for result in found] == [1, 4]
    for result in found:
        assert result.shown == result.examples
        assert result.queries == 30
        # 20 of 30 are ham, and nearly every example shown last is ham.
        assert result.accuracy == pytest.approx(2 / 3, abs=0.1)
        p = result.accuracy
        assert result.standard_error == pytest.approx((p * (1 - p) / 30) ** 0.5)


def test_a_query_never_sees_its_own_text(tokenizer: BytePairTokenizer) -> None:
    watching = WatchingDecoder(tokenizer)
    evaluate(watching, tokenizer, TASK, TASK, shots=(16,), seed=1)
    other = {prompt for prompt in watching.seen if prompt.endswith("Label:")}
    watching.seen.clear()
    evaluate(watching, tokenizer, TASK, TASK, shots=(16,))
    prompts = {prompt for prompt in watching.seen if prompt.endswith("Label:")}
    assert not prompts & other
    assert len(prompts) == len(TASK)
    assert len({prompt.split("\n")[0] for prompt in prompts}) > 5  # each has examples of its own
    for prompt in prompts:
        texts = [line for line in prompt.split("\n") if line.startswith("Text:")]
        assert len(texts) == len(set(texts)) == 17


def test_more_examples_begin_with_the_fewer(tokenizer: BytePairTokenizer) -> None:
    """So that accuracies over the number of examples differ by the number alone."""
    watching = WatchingDecoder(tokenizer)
    evaluate(watching, tokenizer, TASK[:5], TASK, shots=(1, 4))
    prompts = [prompt.split("\n\n") for prompt in watching.seen if prompt.endswith("Label:")]
    few, more = (
        {blocks[-1]: blocks[:-1] for blocks in prompts if len(blocks) == n + 1} for n in (1, 4)
    )
    assert len(few) == len(more) == 5
    for query, examples in few.items():
        assert more[query][:1] == examples


def test_evaluation_repeats_and_fits_a_short_context(
    model: GPT2, tokenizer: BytePairTokenizer
) -> None:
    decoder = TorchDecoder(model)
    found = evaluate(decoder, tokenizer, TASK[:6], TASK, seed=3)
    assert found == evaluate(decoder, tokenizer, TASK[:6], TASK, seed=3)
    assert [result.shown for result in found[:3]] == [0, 1, 4]
    assert 16 < found[3].shown + 1 <= 17  # about 27 bytes an example: 16 fit into 600
    small = GPT2(GPT2Config(tokenizer.vocabulary_size, 100, layers=1, heads=1, width=8))
    found = evaluate(TorchDecoder(small), tokenizer, TASK[:6], TASK)
    assert 1 < found[3].shown < 4


def test_examples_go_from_the_front_until_the_rest_fits(tokenizer: BytePairTokenizer) -> None:
    examples = [Example("a" * 20, "ham"), Example("b", "spam")]
    whole = tokenizer.encode(few_shot_prompt(examples, "c"))
    assert fit_prompt(tokenizer, examples, "c", len(whole)) == (whole, 2)
    ids, shown = fit_prompt(tokenizer, examples, "c", len(whole) - 1)
    assert (tokenizer.decode(ids), shown) == (few_shot_prompt(examples[1:], "c"), 1)
    ids, shown = fit_prompt(tokenizer, examples, "c" * 50, 10)
    assert (tokenizer.decode(ids), shown) == ("ccc\nLabel:"[-10:], 0)


def test_the_longest_label_has_just_enough_room(tokenizer: BytePairTokenizer) -> None:
    """Its last token is read from the prompt and the others, and takes no place itself."""
    pool = [Example(f"text {i}", "spam" if i % 2 else "food") for i in range(4)]
    decoder = LastLabelDecoder(tokenizer)
    decoder.context_length = len(few_shot_prompt(pool[:1], "text 9")) + len(" spam") - 1
    query = [Example("text 9", "spam")]
    assert evaluate(decoder, tokenizer, query, pool, shots=(1,))[0].shown == 1
    decoder.context_length -= 1
    assert evaluate(decoder, tokenizer, query, pool, shots=(1,))[0].shown == 0


def test_large_logits_do_not_overflow(tokenizer: BytePairTokenizer) -> None:
    class Loud(LastLabelDecoder):
        def prefill(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            return 1000 * super().prefill(ids, mask)

    prompt = tokenizer.encode(few_shot_prompt([Example("a", "spam")], "b"))
    scores = score_labels(Loud(tokenizer), tokenizer, [prompt], ["ham", "spam"])
    assert scores[0, 1] == 0
    assert -np.inf < scores[0, 0] < -9000


def test_bad_tasks_say_what_is_wrong(tmp_path: Path, tokenizer: BytePairTokenizer) -> None:
    path = tmp_path / "task.jsonl"
    with pytest.raises(UserError, match=r"task\.jsonl does not exist"):
        read_task(path)
    path.write_text("\n\n")
    with pytest.raises(UserError, match="has no examples"):
        read_task(path)
    good = '{"text": "a", "label": "ham"}\n'
    for bad in ("{", "[]", "{}", '{"text": "a"}', '{"text": "a", "label": ""}', '{"text": 1}'):
        path.write_text(good + "\n" + bad)
        with pytest.raises(UserError, match=r"task\.jsonl:3: not"):
            read_task(path)
    path.write_text(good + '  \n{"text": "b", "label": "spam"}')
    assert read_task(path) == [Example("a", "ham"), Example("b", "spam")]
    path.write_text('\ufeff{"text": "a\u2028b\x85c", "label": "ham"}\r\n', newline="")
    assert read_task(path) == [Example("a\u2028b\x85c", "ham")]


@pytest.mark.parametrize(
    ("queries", "pool", "message"),
    [
        (TASK, [Example("a", "ham")], "at least two"),
        ([Example("a", "egg")], TASK, "'egg' is not among"),
        ([], TASK, "no texts"),
        (TASK, TASK[:16], "16 examples are to be shown, and there are 15 others"),
    ],
)
def test_bad_evaluations_say_what_is_wrong(
    tokenizer: BytePairTokenizer, queries: list[Example], pool: list[Example], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(LastLabelDecoder(tokenizer), tokenizer, queries, pool)


def test_majority_and_plot(tmp_path: Path) -> None:
    assert majority_accuracy(TASK) == pytest.approx(2 / 3)
    path = tmp_path / "fewshot.svg"
    plot_accuracy([Accuracy(0, 0, 30, 0.5, 0.09), Accuracy(4, 4, 30, 0.7, 0.08)], 2 / 3, path)
    assert "<svg" in path.read_text()
