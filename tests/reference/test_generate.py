"""Generation against transformers: greedy tokens, and what its logits processors leave."""

import numpy as np
import pytest
import torch

from gptmill.evaluate.fewshot import Example, few_shot_prompt, score_labels
from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions, distribution
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import byte_pairs_from_merges

transformers = pytest.importorskip("transformers", reason="transformers is a test extra")
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def pair(vocabulary: int, context: int, layers: int, heads: int, width: int) -> tuple:
    """A random GPT-2 of ours and transformers' with the same weights."""
    torch.manual_seed(0)
    ours = GPT2(GPT2Config(vocabulary, context, layers, heads, width)).eval()
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=context, n_layer=layers, n_head=heads, n_embd=width,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            weights[name].mul_(3)  # a sharper distribution than an untrained model's
            weight = weights[name].T if name.endswith(TRANSPOSED) else weights[name]
            parameter.copy_(weight)
    return ours, theirs


@pytest.mark.parametrize(
    "shape",
    [(257, 128, 3, 4, 64), (50257, 1024, 2, 12, 768)],
    ids=["tiny", "GPT-2's widths, 2 layers"],
)
def test_greedy_continuations_are_the_same(shape: tuple[int, ...]) -> None:
    ours, theirs = pair(*shape)
    tokenizer = byte_pairs_from_merges([])
    tokenizer.vocabulary_size = shape[0]  # ids alone matter here, not the text
    tokenizer.decode_bytes = lambda ids: b""
    tokenizer.end_of_text = -1
    random = np.random.default_rng(0)
    prompts = [random.integers(0, shape[0], length).tolist() for length in (4, 17, 1)]
    found = generate(TorchDecoder(ours), tokenizer, prompts, SamplingOptions(max_new_tokens=64))
    for prompt, completion in zip(prompts, found):
        expected = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, pad_token_id=0
        )
        assert completion.ids == expected[0, len(prompt) :].tolist()


OPTIONS = [
    {"temperature": 0.7},
    {"top_k": 25},
    {"top_p": 0.9},
    {"top_p": 0.2},
    {"min_p": 0.05},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"temperature": 1.4, "top_k": 25},
    {"temperature": 1.5, "top_k": 100, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.2},
]


def processed(logits: torch.Tensor, seen: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """Probabilities after transformers' processors, in the order its `generate` has them."""
    processors = transformers.LogitsProcessorList()
    if options.repetition_penalty != 1:
        penalty = transformers.RepetitionPenaltyLogitsProcessor(options.repetition_penalty)
        processors.append(penalty)
    processors.append(transformers.TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        processors.append(transformers.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(options.top_p))
    if options.min_p:
        processors.append(transformers.MinPLogitsWarper(options.min_p))
    return processors(seen, logits).softmax(dim=-1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [0.5, 4.0], ids=["flat", "peaked"])
def test_filtered_distributions_are_the_same(options: dict[str, float], scale: float) -> None:
    chosen = SamplingOptions(**{"temperature": 1.0, **options})
    random = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(4, 5000, generator=random)
    seen = torch.randint(0, 5000, (4, 300), generator=random)
    expected = processed(logits, seen, chosen).numpy()
    for row in range(4):
        ids, probabilities = distribution(logits[row].numpy(), chosen, set(seen[row].tolist()))
        found = np.zeros(5000)
        found[ids] = probabilities
        np.testing.assert_allclose(found, expected[row], atol=1e-7, rtol=1e-4)
        assert (found > 0).sum() == (expected[row] > 0).sum()


@torch.no_grad()
def test_label_likelihoods_are_those_of_their_loss() -> None:
    """`transformers` gives the mean loss over the label's tokens alone, the prompt's masked."""
    ours, theirs = pair(257, 128, 3, 4, 64)
    tokenizer = byte_pairs_from_merges([])
    examples = [Example("win a prize now", "spam"), Example("see you at six", "ham")]
    texts = ["a short one", "a text that is a good deal longer"]
    prompts = [tokenizer.encode(few_shot_prompt(examples[: n + 1], t)) for n, t in enumerate(texts)]
    labels = ["ham", "hamster", "spam"]
    found = score_labels(TorchDecoder(ours), tokenizer, prompts, labels, batch_size=3)
    for row, prompt in zip(found, prompts):
        for score, label in zip(row, labels):
            answer = tokenizer.encode(" " + label)
            targets = torch.tensor([[-100] * len(prompt) + answer])
            loss = theirs(torch.tensor([[*prompt, *answer]]), labels=targets).loss
            assert score == pytest.approx(-float(loss) * len(answer), abs=1e-4)
