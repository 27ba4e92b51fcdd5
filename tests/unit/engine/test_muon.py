"""Muon: against PyTorch's own, on the singular values, and through the engine."""

import pytest
import torch

from gptmill.engine.muon import NEWTON_SCHULZ_STEPS, Muon, orthogonalized
from gptmill.engine.optim import build_optimizer
from gptmill.model.gpt2 import GPT2, GPT2Config
from gptmill.params import load

SHAPES = [(48, 16), (16, 16), (16, 64), (48, 16)]
RATE, SCALE, DECAY = 1e-2, 5.0, 0.1


def test_steps_are_those_of_pytorchs_muon() -> None:
    """Its Newton–Schulz runs in bfloat16, so that only the first digits can agree."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ours, theirs = ([torch.nn.Parameter(s.clone()) for s in start] for _ in range(2))
    groups = [{"params": ours, "weight_decay": DECAY, "muon": SCALE}]
    optimizers = [
        Muon(groups, lr=RATE, fused=True),
        torch.optim.Muon(theirs, lr=RATE * SCALE, weight_decay=DECAY, ns_steps=NEWTON_SCHULZ_STEPS),
    ]
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in SHAPES]
        for parameters, optimizer in zip((ours, theirs), optimizers):
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient.clone()
            optimizer.step()
    for before, our, their in zip(start, ours, theirs):
        moved, expected = our.detach() - before, their.detach() - before
        assert (moved - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("shape", [(3, 16, 64), (2, 64, 16)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.svdvals(matrices).max() > 8
    values = torch.linalg.svdvals(orthogonalized(matrices, steps=5))
    assert 0.6 < values.min() <= values.max() < 1.3
    # The directions stay: the nearest orthogonal matrix of what came in and went out is the same.
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    mixed = u.mT @ orthogonalized(matrices, steps=5) @ vh.mT
    torch.testing.assert_close(
        mixed, torch.diag_embed(mixed.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0
    )


def test_matrices_in_blocks_are_muons_and_the_rest_is_adamws() -> None:
    model = GPT2(GPT2Config(31, 24, layers=2, heads=2, width=16))
    config = load().pretrain.optimizer.model_copy(update={"muon": 4.0})
    optimizer = build_optimizer(model, config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [{names[p] for p in group["params"]} for group in optimizer.param_groups]
    assert groups[0] == {
        f"transformer.h.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert groups[1] == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert sum(map(len, groups)) == len(names)
    model(torch.arange(10)[None]).logsumexp(2).sum().backward()
    optimizer.step()
    for parameter in optimizer.param_groups[0]["params"]:
        assert set(optimizer.state[parameter]) == {"momentum", "step"}
    for group in optimizer.param_groups[1:]:
        assert all("exp_avg" in optimizer.state[parameter] for parameter in group["params"])


def test_without_muon_it_is_plain_adamw() -> None:
    model = GPT2(GPT2Config(31, 24, layers=1, heads=2, width=16))
    assert type(build_optimizer(model, load().pretrain.optimizer)) is torch.optim.AdamW
