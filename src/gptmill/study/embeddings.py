"""Token and position embeddings: a lookup, a sum, and a picture before and after training.

Shapes: V vocabulary, T tokens, C width.
"""

from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from gptmill.model.gpt2 import GPT2
from gptmill.study.draw import COLORS, panels
from gptmill.study.finding import Finding, require

LABELED = 40  # of the tokens drawn
KINDS = ("lower case", "capitalised", "no letter")


def principal_components(table: Tensor) -> tuple[Tensor, float]:
    """The rows of [N, C] in the plane of their largest variance, [N, 2], and its share of all.

    The sign of a component is free; its largest entry is made positive, so that pictures agree.
    """
    centered = table.double() - table.double().mean(0)
    _, sizes, directions = torch.linalg.svd(centered, full_matrices=False)
    plane = centered @ directions[:2].T
    largest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    share = (sizes[:2] ** 2).sum() / (sizes**2).sum()
    return plane * largest.sign(), share.item()


def neighbor_similarity(table: Tensor) -> float:
    """Mean cosine of rows that stand beside each other."""
    return torch.cosine_similarity(table[:-1], table[1:]).mean().item()


@torch.no_grad()
def embeddings(untrained: GPT2, trained: GPT2, ids: Tensor, frequent: dict[int, str]) -> Finding:
    """Both tables before and after training; `frequent` are the tokens drawn, id to text."""
    require(len(frequent), 2, "different held-out tokens")
    tokens = torch.tensor(list(frequent))
    before, after = (model.transformer.wte.weight for model in (untrained, trained))
    positions = [getattr(m.transformer, "wpe", None) for m in (untrained, trained)]
    learned = positions[0] is not None
    figure, axes = panels(2 if learned else 1, 2, 7.6, 7.0 if learned else 3.6)
    rows: list[dict[str, Any]] = []
    shares = [
        _draw_tokens(axes[0], "tokens, untrained", before[tokens], frequent, rows),
        _draw_tokens(axes[1], "tokens, trained", after[tokens], frequent, rows),
    ]
    axes[0].legend(fontsize=7)
    metrics = {
        "tokens_plane_share_before": shares[0],
        "tokens_plane_share_after": shares[1],
        "lookup_max_difference": _lookup_difference(after, ids),
        "vocabulary": len(after),
        "width": after.shape[1],
    }
    told = "This model has no position embedding"
    if learned:
        tables = [table.weight for table in positions if table is not None]
        _draw_positions(axes[2], "positions, untrained", tables[0], rows)
        _draw_positions(axes[3], "positions, trained", tables[1], rows)
        similar = [neighbor_similarity(table) for table in tables]
        metrics |= {"positions": len(tables[1]), "position_neighbor_cosine_before": similar[0],
                    "position_neighbor_cosine_after": similar[1]}  # fmt: skip
        told = (
            f"Neighboring positions, unrelated before (mean cosine {similar[0]:.2f}), have come "
            f"to {similar[1]:.2f}"
        )
    return Finding(
        "embeddings",
        2,
        "Embeddings before and after training",
        f"A table of {len(after):,} × {after.shape[1]} turns ids into vectors: a lookup, equal to "
        "a product with one-hot rows. The row of the position is added, and the input is [batch, "
        f"tokens, {after.shape[1]}]. Drawn: the {len(frequent)} most frequent tokens in the plane "
        f"of their largest variance. {told}",
        metrics,
        rows,
        figure,
    )


def _lookup_difference(table: Tensor, ids: Tensor) -> float:
    """A lookup against the product with one-hot rows, which it saves."""
    one_hot = torch.nn.functional.one_hot(ids, len(table)).to(table.dtype)
    return (table[ids] - one_hot @ table).abs().max().item()


def _draw_tokens(
    axes: Axes, title: str, table: Tensor, frequent: dict[int, str], rows: list[dict[str, Any]]
) -> float:
    plane, share = principal_components(table)
    kinds = [_kind(text) for text in frequent.values()]
    for color, kind in zip(COLORS, dict.fromkeys(KINDS)):
        chosen = [place for place, found in enumerate(kinds) if found == kind]
        axes.scatter(plane[chosen, 0], plane[chosen, 1], s=9, color=color, label=kind)
    for place, ((x, y), text) in enumerate(zip(plane.tolist(), frequent.values())):
        if place < LABELED:
            axes.annotate(text, (x, y), (2, 2), textcoords="offset points", fontsize=6.5)
        rows.append({"table": title, "item": text, "x": x, "y": y})
    axes.set_title(f"{title} ({share:.0%} of the variance)")
    return share


def _kind(text: str) -> str:
    if not text[:1].isalpha():
        return "no letter"
    return "capitalised" if text[:1].isupper() else "lower case"


def _draw_positions(axes: Axes, title: str, table: Tensor, rows: list[dict[str, Any]]) -> None:
    plane, share = principal_components(table)
    axes.plot(plane[:, 0], plane[:, 1], color="#d3d9e2", linewidth=0.8)
    axes.scatter(plane[:, 0], plane[:, 1], s=10, c=range(len(plane)), cmap="viridis", zorder=2)
    for place in sorted({0, len(plane) // 2, len(plane) - 1}):
        axes.annotate(str(place), tuple(plane[place].tolist()), (4, 4), textcoords="offset points")
    rows += [
        {"table": title, "item": str(place), "x": x, "y": y}
        for place, (x, y) in enumerate(plane.tolist())
    ]
    axes.set_title(f"{title} ({share:.0%} of the variance)")
