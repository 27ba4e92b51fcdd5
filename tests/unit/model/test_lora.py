"""LoRA: by hand, where it starts, what it trains, and that merging changes no output."""

import torch
from torch import nn

from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config
from gptmill.model.lora import LowRankLinear, add_low_rank, merge_low_rank

CONFIG = GPT2Config(vocabulary_size=40, context_length=16, layers=2, heads=2, width=16)
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def test_by_hand() -> None:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    layer.bias = nn.Parameter(torch.tensor([0.5, -0.5]))
    updated = LowRankLinear(layer, rank=2, alpha=4.0)
    updated.down = nn.Parameter(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    updated.up = nn.Parameter(torch.tensor([[3.0, 0.0], [-1.0, 1.0]]))
    x = torch.tensor([[1.0, 1.0]])
    # A x = (3, 1); B (3, 1) = (9, -2); times alpha / rank = 2: (18, -4); W x + b = (1.5, 0.5)
    assert updated(x).tolist() == [[19.5, -3.5]]
    merged = updated.merged()
    # W + 2 B A = I + 2 [[3, 6], [-1, -1]]
    assert merged.weight.tolist() == [[7.0, 12.0], [-2.0, -1.0]]
    assert merged(x).tolist() == [[19.5, -3.5]]


def test_it_starts_where_the_model_is() -> None:
    torch.manual_seed(0)
    model = GPT2Classifier(CONFIG, 2).eval()
    before = model(IDS)
    add_low_rank(model.transformer, rank=4, alpha=8.0)
    torch.testing.assert_close(model(IDS), before, rtol=0, atol=0)
    updates = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    assert len(updates) == 4 * CONFIG.layers
    assert all(update.down.abs().sum() > 0 for update in updates), "or B could never learn"


def test_training_moves_the_updates_alone_and_merging_keeps_the_logits() -> None:
    torch.manual_seed(0)
    model = GPT2Classifier(CONFIG, 2)
    names = set(model.state_dict())
    add_low_rank(model, rank=4, alpha=8.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(2):  # at the first step B is zero, and so is the gradient of A
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IDS), torch.tensor([0, 1])).backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.endswith((".down", ".up"))}
    model.eval()
    unmerged = model(IDS)
    merge_low_rank(model)
    torch.testing.assert_close(model(IDS), unmerged, rtol=1e-5, atol=1e-6)
    assert set(model.state_dict()) == names
