"""The parts of a block by hand: normalization, activation, feed-forward, dropout, shortcuts.

Shapes: B batch, T tokens, C width.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2, Block, FeedForward
from gptmill.study.draw import heat, log_axis, panels
from gptmill.study.finding import Finding, small

EPSILON = 1e-5
DEPTH = 12


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, unbiased: bool = False) -> Tensor:
    """Every token [..., C] to mean 0 and variance 1, scaled and shifted (Ba et al. 2016).

    The variance divides by C, not C − 1: biased, as PyTorch's and GPT-2's.
    """
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, keepdim=True, unbiased=unbiased)
    return weight * (x - mean) / torch.sqrt(variance + EPSILON) + bias


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU as GPT-2 has it (Hendrycks & Gimpel 2016): the normal distribution by its tanh form."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def feed_forward(x: Tensor, layer: FeedForward) -> Tensor:
    """The layer's two products and its activation, written out."""
    hidden = gelu_tanh(x @ layer.c_fc.weight.T + layer.c_fc.bias)
    return hidden @ layer.c_proj.weight.T + layer.c_proj.bias


@torch.no_grad()
def normalization(config: GPT2Config, seed: int) -> Finding:
    """LayerNorm by hand against PyTorch's, and against batch normalization."""
    torch.manual_seed(seed)
    width = 24
    scale, shift = torch.linspace(0.3, 2.5, 8)[:, None], torch.linspace(2, -2, 8)[:, None]
    x = torch.randn(8, width) * scale + shift
    ours = nn.LayerNorm(config.width)
    states = torch.randn(4, 16, config.width)
    nn.init.normal_(ours.weight), nn.init.normal_(ours.bias)
    by_hand = layer_norm(states, ours.weight, ours.bias)
    unbiased = layer_norm(states, ours.weight, ours.bias, unbiased=True)
    layer, batch = nn.LayerNorm(width), nn.BatchNorm1d(width)
    others = torch.cat([x[:1], torch.randn(7, width)])
    moved = {
        name: (norm(x)[0] - norm(others)[0]).abs().max().item()
        for name, norm in (("layer", layer), ("batch", batch))
    }
    normed = layer(x)
    figure, axes = panels(1, 3, 7.6, 2.5)
    shown = (
        ("as they come", x),
        ("LayerNorm: each row", normed),
        ("BatchNorm: each column", batch(x)),
    )
    for place, (title, matrix) in zip(axes, shown):
        heat(place, matrix.numpy(), vmin=-3, vmax=3)
        place.set_title(title)
        place.set_ylabel("tokens")
        place.set_xlabel("features")
    biased = (by_hand - ours(states)).abs().max().item()
    apart = (unbiased - ours(states)).abs().max().item()
    rows = [{"token": i, "mean": r.mean().item(), "variance": r.var(unbiased=False).item(),
             "normed_mean": n.mean().item(), "normed_variance": n.var(unbiased=False).item()}
            for i, (r, n) in enumerate(zip(x, normed))]  # fmt: skip
    return Finding(
        "normalization",
        4,
        "LayerNorm, and why not batch normalization",
        f"By hand with the biased variance LayerNorm equals PyTorch's ({small(biased)}); with "
        f"the unbiased one it is off by {apart:.2g}. It looks at one token alone: other tokens in "
        f"the batch change its result by {moved['layer']:g}, but batch normalization's by "
        f"{moved['batch']:.2f}",
        {"layer_norm_max_difference": biased, "unbiased_max_difference": apart,
         "layer_norm_depends_on_batch": moved["layer"],
         "batch_norm_depends_on_batch": moved["batch"]},
        rows,
        figure,
    )  # fmt: skip


@torch.no_grad()
def activations(model: GPT2) -> Finding:
    """GELU by hand, exact and as GPT-2 approximates it, beside ReLU; the feed-forward by hand."""
    x = torch.linspace(-4, 4, 161)
    curves = {
        "ReLU": torch.relu(x),
        "GELU": nn.functional.gelu(x),
        "GELU, tanh (GPT-2)": gelu_tanh(x),
    }
    tanh = (gelu_tanh(x) - nn.functional.gelu(x, approximate="tanh")).abs().max().item()
    approximation = (gelu_tanh(x) - curves["GELU"]).abs().max().item()
    config = GPT2Config(2, 2, 1, 1, model.config.width)
    layer = FeedForward(config)
    states = torch.randn(4, 16, config.width)
    by_hand = (feed_forward(states, layer) - layer(states)).abs().max().item()
    hidden = layer.c_fc.out_features
    figure, (left, right) = panels(1, 2, 7.6, 2.8)
    for (name, y), style in zip(curves.items(), ("-", "-", "--")):
        left.plot(x, y, style, label=name)
        right.plot(x[1:], y.diff() / x.diff(), style, label=name)
    left.set_title("value")
    right.set_title("slope: ReLU's is 0 left of 0, GELU's is not")
    left.legend()
    rows = [{"x": x[i].item(), **{name: y[i].item() for name, y in curves.items()}}
            for i in range(0, len(x), 4)]  # fmt: skip
    return Finding(
        "activations",
        4,
        "GELU, ReLU and the feed-forward network",
        f"GPT-2's tanh form by hand equals PyTorch's ({small(tanh)}) and the exact GELU within "
        f"{small(approximation)}. The feed-forward network widens {config.width} to {hidden} and "
        f"comes back; written out it equals the model's ({small(by_hand)})",
        {"gelu_max_difference": tanh, "tanh_approximation": approximation,
         "feed_forward_max_difference": by_hand, "feed_forward_width": hidden},
        rows,
        figure,
    )  # fmt: skip


@torch.no_grad()
def dropout(seed: int) -> Finding:
    """What is kept is divided by 1 − p, so that the expected value stays what it was."""
    torch.manual_seed(seed)
    shares = [0.1, 0.2, 0.5, 0.8]
    ones = torch.ones(200, 200)
    rows = []
    for share in shares:
        dropped = nn.functional.dropout(ones, share)
        rows.append(
            {
                "p": share,
                "mean": dropped.mean().item(),
                "mean_without_scaling": dropped.bool().float().mean().item(),
                "kept_value": dropped.max().item(),
            }
        )
    figure, (left, right) = panels(1, 2, 7.6, 2.8, width_ratios=[1, 1.4])
    heat(left, nn.functional.dropout(torch.ones(12, 12), 0.5).numpy(), vmin=0, vmax=3)
    left.set_title("ones after p = 0.5: 0 or 2")
    right.plot(shares, [r["mean"] for r in rows], marker="o", label="scaled by 1/(1 − p)")
    right.plot(shares, [r["mean_without_scaling"] for r in rows], marker="o", label="not scaled")
    right.set_ylim(0, 1.3)
    right.set_xlabel("p")
    right.set_title("mean of ones after dropout")
    right.legend()
    worst = max(abs(row["mean"] - 1) for row in rows)
    still = torch.equal(nn.Dropout(0.5).eval()(ones), ones)
    return Finding(
        "dropout",
        3,
        "Dropout's scaling",
        f"Kept values are divided by 1 − p, so the mean stays 1 (off by at most {worst:.1%} over "
        f"40,000 draws) and evaluation, which drops nothing, sees the same scale",
        {"largest_mean_error": worst, "evaluation_is_identity": float(still)},
        rows,
        figure,
    )


def shortcuts(seed: int) -> Finding:
    """Mean gradient of each layer of a deep stack, with and without shortcut connections."""
    width = 64
    torch.manual_seed(seed)
    layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(DEPTH))
    x, target = torch.randn(2, 32, width)
    plain = _layer_gradients(layers, lambda x, layer: layer(x), x, target)
    added = _layer_gradients(layers, lambda x, layer: x + layer(x), x, target)
    rows = [
        {"layer": i + 1, "plain": p, "with_shortcuts": s}
        for i, (p, s) in enumerate(zip(plain, added))
    ]
    figure, (axes,) = panels(height=2.8)
    for name, values in (("plain", plain), ("with shortcuts", added)):
        axes.plot(range(1, DEPTH + 1), values, marker="o", label=name)
    log_axis(axes.yaxis)
    axes.set_xlabel("layer, the first being farthest from the loss")
    axes.set_ylabel("mean |gradient|")
    axes.legend()
    faded, kept = plain[0] / plain[-1], added[0] / added[-1]
    return Finding(
        "shortcuts",
        4,
        "Shortcut connections and vanishing gradients",
        f"In a stack of {DEPTH} layers the first one's gradient is {small(faded)} of the last "
        f"one's; with a shortcut around each layer it is {kept:.1f} of it",
        {"first_to_last_plain": faded, "first_to_last_with_shortcuts": kept},
        rows,
        figure,
    )


def norm_placement(seed: int) -> Finding:
    """Gradients near the output by depth: LayerNorm before each part (GPT-2), or after the sum."""
    width = 64
    rows = []
    for depth in (2, 4, 8, 16, 32):
        torch.manual_seed(seed)
        config = GPT2Config(2, 32, depth, 4, width)
        blocks = nn.ModuleList(Block(config) for _ in range(depth))
        for parameter in blocks.parameters():
            if parameter.dim() > 1:  # parts as loud as the shortcut around them
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        x, target = torch.randn(2, 4, 32, width)
        before = _layer_gradients(blocks, lambda x, b: b(x), x, target, nn.LayerNorm(width))
        after = _layer_gradients(blocks, post_norm, x, target)
        rows.append({"depth": depth, "pre": before[-1], "post": after[-1]})
    figure, (axes,) = panels(height=2.8)
    for column, name in (("pre", "before each part (GPT-2)"), ("post", "after the sum (2017)")):
        depths, gradients = [r["depth"] for r in rows], [r[column] for r in rows]
        axes.plot(depths, gradients, marker="o", label=name)
    axes.set_ylim(0)
    axes.set_xlabel("blocks")
    axes.set_ylabel("mean |gradient|, last block")
    axes.legend(title="LayerNorm")
    shrunk = {column: rows[-1][column] / rows[0][column] for column in ("pre", "post")}
    return Finding(
        "norm_placement",
        4,
        "LayerNorm before or after",
        "LayerNorm before each part leaves the sum of shortcuts free from end to end, and the last "
        f"block's first gradient shrinks with depth: to {shrunk['pre']:.2f} from 2 blocks to 32. "
        f"After the sum it stays ({shrunk['post']:.2f}), so that deep models of that kind need a "
        "warmup (Xiong et al. 2020)",
        {"pre_gradient_2_to_32_blocks": shrunk["pre"],
         "post_gradient_2_to_32_blocks": shrunk["post"]},
        rows,
        figure,
    )  # fmt: skip


def post_norm(x: Tensor, block: Block) -> Tensor:
    """A block's parts in the order of Vaswani et al. 2017: LayerNorm after each sum."""
    x = block.ln_1(x + block.attn(x))
    return block.ln_2(x + block.mlp(x))


def _layer_gradients(
    layers: nn.ModuleList,
    step: Callable[[Tensor, Any], Tensor],
    x: Tensor,
    target: Tensor,
    final: nn.Module | None = None,
) -> list[float]:
    """Mean |gradient| of each layer's matrices under a squared error."""
    layers.zero_grad()
    for layer in layers:
        x = step(x, layer)
    nn.functional.mse_loss(final(x) if final else x, target).backward()
    return [
        torch.cat(
            [p.grad.flatten() for p in layer.parameters() if p.dim() > 1 and p.grad is not None]
        )
        .abs()
        .mean()
        .item()
        for layer in layers
    ]
