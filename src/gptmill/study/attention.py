"""Attention: the taught ladder beside production, weights per head, and how far a token sees.

Shapes: L layers, H heads, T tokens, D head width, C = H·D.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gptmill.model.attention import CausalSelfAttention
from gptmill.model.attention_study import (
    CausalAttention,
    MultiHeadWrapper,
    SelfAttentionV1,
    SelfAttentionV2,
    attention_weights,
    later_tokens,
    simplified_self_attention,
)
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2, Block, count_parameters
from gptmill.study.draw import bars, causal_heat, log_axis, panels
from gptmill.study.finding import Finding, require, small

ROWS = 4  # sequences in a timed batch
REPEATS = 5
MOST_LAYERS = 4


@torch.no_grad()
def ladder(config: GPT2Config, seed: int) -> Finding:
    """Every rung on the same random input and weights: parameters, time, distance to production.

    A rung of one head is compared with that head of production, the others with its output.
    """
    torch.manual_seed(seed)
    length = min(config.context_length, 128)
    wrapper = MultiHeadWrapper(config.width, config.heads, length)
    production = CausalSelfAttention(config.width, config.heads, dropout=0.0, bias=False)
    production.load_state_dict(wrapper.stacked())
    first, second = _without_mask(wrapper)
    x = torch.randn(ROWS, length, config.width)
    whole = production(x)
    head = _production_head(production, x)
    rungs: list[tuple[str, nn.Module | None, Callable[[Tensor], Tensor], Tensor]] = [
        ("simplified", None, lambda x: simplified_self_attention(x)[0], whole),
        ("v1 parameters", first, first, head),
        ("v2 linear layers", second, second, head),
        ("causal head", wrapper.heads[0], wrapper.heads[0], head),
        ("wrapper of heads", wrapper, wrapper, whole),
        ("production", production, production, whole),
    ]
    rows, timings = [], {}
    for name, module, function, expected in rungs:
        difference = (function(x) - expected).abs().max().item()
        parameters = count_parameters(module) if module else 0
        rows.append({"rung": name, "parameters": parameters, "max_difference": difference})
        timings[f"ladder/{name.replace(' ', '_')}_seconds"] = _seconds(function, x)
    return _ladder_finding(rows, timings)


@torch.no_grad()
def head_weights(model: GPT2, ids: Tensor) -> Tensor:
    """Attention weights [L, H, T, T] of one sequence, ids [T], computed as the ladder does.

    Production never holds them: its fused kernel keeps no T × T matrix.
    """
    found = []
    for block, x in block_inputs(model, ids):
        query, key, _ = _heads(block.attn, block.ln_1(x))
        found.append(attention_weights(query, key, later_tokens(len(ids)))[0])
    return torch.stack(found)


def block_inputs(model: GPT2, ids: Tensor) -> list[tuple[Block, Tensor]]:
    """Every block with the hidden states [1, T, C] that enter it."""
    inputs: list[tuple[Block, Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda block, args, _: inputs.append((block, args[0])))
        for block in model.transformer.h
    ]
    model(ids[None])
    for hook in hooks:
        hook.remove()
    return inputs


def heads(model: GPT2, ids: Tensor, labels: list[str]) -> Finding:
    """Heat maps of every head of at most four layers; the grey upper triangle is the future."""
    require(len(ids), 2, "held-out tokens")
    weights = head_weights(model, ids)
    layers = sorted({round(i * (len(weights) - 1) / (MOST_LAYERS - 1)) for i in range(MOST_LAYERS)})
    shown = weights[layers]
    count = shown.shape[1]
    figure, axes = panels(len(layers), count, 1.3 + 1.75 * count, 0.7 + 1.75 * len(layers))
    for place, matrix in enumerate(shown.flatten(0, 1)):
        layer, head = layers[place // count], place % count
        causal_heat(axes[place], matrix.numpy())
        axes[place].set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
        if head == 0:
            axes[place].set_yticks(range(len(labels)), labels, fontsize=5)
        if place // count == len(layers) - 1:
            axes[place].set_xticks(range(len(labels)), labels, fontsize=5, rotation=90)
    distance = torch.arange(len(ids))[:, None] - torch.arange(len(ids))[None]
    back = (weights * distance).sum(-1).mean(-1)  # [L, H] tokens looked back, on average
    future = weights.masked_select(later_tokens(len(ids))).abs().max().item()
    rows = [
        {"layer": layer + 1, "head": head + 1, "tokens_back": back[layer, head].item()}
        for layer in range(back.shape[0])
        for head in range(back.shape[1])
    ]
    near, far = min(rows, key=_tokens_back), max(rows, key=_tokens_back)
    return Finding(
        "attention_heads",
        3,
        "What each head looks at",
        "Rows are tokens that look, columns what they look at; dark is much weight. Grey above "
        f"the diagonal: no head sees the future (largest weight there: {future:g}). "
        f"{_name(near)} looks {near['tokens_back']:.1f} tokens back on average, {_name(far)} "
        f"{far['tokens_back']:.1f}",
        {"largest_future_weight": future, "nearest_head": near["tokens_back"],
         "farthest_head": far["tokens_back"]},
        rows,
        figure,
    )  # fmt: skip


def reach(model: GPT2, ids: Tensor, labels: list[str]) -> Finding:
    """How much each token moves the final hidden state at the first, middle and last position.

    Influence is the norm of the gradient of that state (its projection on itself) with respect to
    each token's embedding, as shares of their sum.
    """
    T = len(ids)
    positions = {"first": 0, "middle": T // 2, "last": T - 1}
    shares = {name: influence(model, ids, place) for name, place in positions.items()}
    weights = head_weights(model, ids)[:, :, -1]
    effective = torch.special.entr(weights).sum(-1).exp().mean().item()
    figure, (axes,) = panels(height=3.0)
    for name, values in shares.items():
        axes.plot(range(T), values, marker="o", markersize=3, label=f"read at the {name} token")
    axes.set_xticks(range(T), labels, rotation=90, fontsize=7)
    axes.set_ylabel("share of the influence")
    axes.legend()
    rows = [
        {"position": i, "token": labels[i], **{n: s[i].item() for n, s in shares.items()}}
        for i in range(T)
    ]
    seen = {name: int((values > 0).sum()) for name, values in shares.items()}
    return Finding(
        "attention_reach",
        7,
        "The last token against the first",
        f"The state at the first token depends on {seen['first']} of {T} tokens, at the last on "
        f"{seen['last']}: under a causal mask only the last token has read the whole text, which "
        f"is why a classifier reads there. Its heads look at {effective:.1f} tokens effectively "
        "(exp of the entropy of their weights)",
        {f"{name}_sees_tokens": count for name, count in seen.items()}
        | {"last_effective_tokens": effective},
        rows,
        figure,
    )


def influence(model: GPT2, ids: Tensor, position: int) -> Tensor:
    """Share [T] of each token in moving the final hidden state at `position`."""
    embedded: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = model.transformer.drop.register_forward_hook(keep)
    state = model.transformer(ids[None])[0, position]
    hook.remove()
    (gradient,) = torch.autograd.grad(state @ state.detach(), embedded)
    norms = gradient[0].norm(dim=-1)
    return norms / norms.sum()


def _without_mask(wrapper: MultiHeadWrapper) -> tuple[SelfAttentionV1, SelfAttentionV2]:
    """Both one-head rungs with the weights of the wrapper's first head."""
    head = wrapper.heads[0]
    assert isinstance(head, CausalAttention)
    head_width, width = head.query.weight.shape
    first, second = SelfAttentionV1(width, head_width), SelfAttentionV2(width, head_width)
    second.load_state_dict(head.state_dict())
    for name in ("query", "key", "value"):
        getattr(first, name).copy_(getattr(head, name).weight.T)
    return first, second


def _heads(attention: CausalSelfAttention, x: Tensor) -> list[Tensor]:
    """Queries, keys and values [B, H, T, D] of the production attention."""
    B, T, C = x.shape
    return [
        part.view(B, T, attention.heads, C // attention.heads).transpose(1, 2)
        for part in attention.c_attn(x).split(C, dim=2)
    ]


def _production_head(production: CausalSelfAttention, x: Tensor) -> Tensor:
    """Context vectors [B, T, D] of production's first head, by PyTorch's fused kernel."""
    query, key, value = _heads(production, x)
    context = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return context[:, 0]


def _seconds(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The best of a few calls, after one to warm up."""
    function(x)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        function(x)
        best = min(best, time.perf_counter() - start)
    return best


def _ladder_finding(rows: list[dict], timings: dict[str, float]) -> Finding:
    figure, (left, right) = panels(1, 2, 7.6, 2.7)
    names = [row["rung"] for row in rows]
    bars(left, names, [r["parameters"] for r in rows], [f"{r['parameters']:,}" for r in rows])
    left.set_title("parameters")
    floor = 1e-9  # where a difference of nothing is drawn
    sizes = [max(row["max_difference"], floor) for row in rows]
    bars(right, [""] * len(rows), sizes, [f"{row['max_difference']:.1e}" for row in rows])
    log_axis(right.xaxis)
    right.set_xlim(floor, max(sizes) * 1e3)
    right.set_title("largest difference to production")
    wrapper = rows[4]["max_difference"]
    return Finding(
        "attention_ladder",
        3,
        "The ladder of attention",
        "Each rung adds an idea: weights to learn, linear layers, the causal mask, several heads. "
        "From the mask on, a rung computes what production does (causal head "
        f"{small(rows[3]['max_difference'])}, wrapper {small(wrapper)}: rounding); "
        "without it the future leaks in and the difference is large",
        {
            "wrapper_max_difference": wrapper,
            "causal_max_difference": rows[3]["max_difference"],
            "unmasked_max_difference": rows[2]["max_difference"],
            "production_parameters": rows[5]["parameters"],
        },
        rows,
        figure,
        timings,
    )


def _tokens_back(row: dict) -> float:
    return row["tokens_back"]


def _name(row: dict) -> str:
    return f"Layer {row['layer']}'s head {row['head']}"
