"""Matrix products by either library, against float64."""

import pytest
import torch
from torch import Tensor, nn

from gptmill.model import products
from gptmill.model.products import Linear, linear, onednn_is_quicker

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN"
)


@pytest.fixture(params=[False, pytest.param(True, marks=needs_onednn)], ids=["plain", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Each library in turn, whatever the processor; the sizes of oneDNN's products."""
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: request.param)
    called: list[tuple] = []
    by_onednn = products._onednn

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        called.append((*x.shape, len(weight)))
        return by_onednn(x, weight, bias)

    monkeypatch.setattr(products, "_onednn", counted)
    called.append(request.param)
    return called


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradients(library: list[tuple], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(128, 192, bias=bias), torch.randn(4, 32, 128, requires_grad=True)
    exact, exact_x = nn.Linear(128, 192, bias=bias).double(), x.detach().double()
    exact.load_state_dict(layer.state_dict())
    upstream = torch.randn(4, 32, 192)
    layer(x).backward(upstream)
    exact(exact_x.requires_grad_()).backward(upstream.double())
    torch.testing.assert_close(layer(x).double(), exact(exact_x), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.grad.double(), exact_x.grad, atol=1e-5, rtol=0)
    for parameter, reference in zip(layer.parameters(), exact.parameters()):
        torch.testing.assert_close(parameter.grad.double(), reference.grad, atol=1e-4, rtol=0)
    products_of_onednn = [(4, 32, 128, 192), (4, 32, 192, 128), (192, 128, 128)]
    assert library[1:4] == (products_of_onednn if library[0] else [])


@needs_onednn
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bytes_every_time(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer, x = Linear(256, 384), torch.randn(777, 256)
    try:
        sums = []
        for _ in range(20):
            layer.zero_grad()
            layer(x).square().sum().backward()
            sums.append(layer.weight.grad.clone())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found, sums[0]) for found in sums)


def test_small_products_and_other_precisions_stay(library: list[tuple]) -> None:
    wide = torch.randn(256, 256)
    linear(wide[:4, :64], wide[:64, :64])
    linear(wide.double(), wide.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(wide, wide).dtype == torch.bfloat16
    assert len(library) == 1


@needs_onednn
@pytest.mark.parametrize(
    ("processor", "quicker"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD Ryzen 7 5800X", "avx512_f": False}, False),  # MKL's AVX2 is all it has
        ({"cpu_name": "Intel(R) Xeon(R) Platinum 8481C", "avx512_f": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_the_rule_is_the_processors(
    monkeypatch: pytest.MonkeyPatch, processor: dict, quicker: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert onednn_is_quicker.__wrapped__() is quicker
