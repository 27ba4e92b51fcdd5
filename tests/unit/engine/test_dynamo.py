import subprocess
import sys

TRAINS = """
import sys
import torch
from gptmill.engine.optim import build_optimizer
from gptmill.params import Optimizer

def trained():
    model = torch.nn.Linear(4, 4)
    optimizer = build_optimizer(model, Optimizer(
        learning_rate=0.1, final_learning_rate=0.0, warmup_steps=0, gradient_clip=1.0,
        weight_decay=0.0, beta1=0.9, beta2=0.95, muon=0.0))
    for _ in range(2):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer

trained()
assert "torch._dynamo" not in sys.modules
"""

COMPILES = """
model = torch.compile(torch.nn.Linear(4, 4), backend="eager")
model(torch.ones(2, 4)).sum().backward()
trained().step()
"""


def run(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_an_optimizer_does_not_bring_torch_compile_with_it():
    done = run(TRAINS)
    assert done.returncode == 0, done.stderr


def test_torch_compile_works_afterwards():
    done = run(TRAINS + COMPILES)
    assert done.returncode == 0, done.stderr
