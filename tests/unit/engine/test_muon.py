"""Muon: against PyTorch's own, on the singular values, and through the engine."""

import pytest
import torch

from gptmill.engine import muon
from gptmill.engine.muon import COEFFICIENTS, Muon, orthogonalized
from gptmill.engine.optim import build_optimizer
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.params import load

SHAPES = [(48, 16), (16, 16), (16, 64), (48, 16)]
RATE, SCALE, DECAY, MOMENTUM = 1e-2, 5.0, 0.1, 0.9
JORDAN = (3.4445, -4.7750, 2.0315)  # the same quintic in each of PyTorch's steps


def test_steps_are_those_of_pytorchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Newton–Schulz runs in bfloat16, so that only the first digits can agree."""
    monkeypatch.setattr(muon, "COEFFICIENTS", (JORDAN,) * 3)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ours, theirs = ([torch.nn.Parameter(s.clone()) for s in start] for _ in range(2))
    groups = [{"params": ours, "weight_decay": DECAY, "muon": SCALE}]
    optimizers = [
        Muon(groups, lr=RATE, betas=(MOMENTUM, 0.99), fused=True),
        torch.optim.Muon(
            theirs, lr=RATE * SCALE, momentum=MOMENTUM, weight_decay=DECAY,
            ns_coefficients=JORDAN, ns_steps=3,
        ),
    ]  # fmt: skip
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in SHAPES]
        for parameters, optimizer in zip((ours, theirs), optimizers):
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient.clone()
            optimizer.step()
    for before, our, their in zip(start, ours, theirs):
        moved, expected = our.detach() - before, their.detach() - before
        assert (moved - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("shape", [(3, 16, 64), (2, 64, 16), (2, 32, 32)])
def test_each_singular_value_goes_through_the_polynomials(shape: tuple[int, int, int]) -> None:
    """By decomposition and in float64, where the code has only products and float32."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    for a, b, c in COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    expected = u @ torch.diag_embed(values) @ vh
    torch.testing.assert_close(
        orthogonalized(matrices.float()), expected.float(), atol=1e-4, rtol=1e-4
    )


def test_small_singular_values_are_lifted_further_than_by_steps_all_alike() -> None:
    matrix = torch.diag(torch.logspace(-3, 0, 32))[None]
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert 0.05 < values.min() <= values.max() < 1.9
    small = 1e-3 / matrix.norm()
    assert values.min() > 2 * JORDAN[0] ** 3 * small  # which is as far as those can go


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
    config = load().pretrain.optimizer.model_copy(update={"muon": 0.0})
    assert type(build_optimizer(model, config)) is torch.optim.AdamW
