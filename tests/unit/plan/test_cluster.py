"""Sizing for many accelerators, against the papers' own figures and hand computations."""

import json

import pytest

from gptmill.cli import main
from gptmill.errors import UserError
from gptmill.model.config import gpt2_config
from gptmill.params import Optimizer, load
from gptmill.plan.activations import Compute
from gptmill.plan.cluster import ACCELERATORS, memory_of, plan_cluster, share, traffic
from gptmill.plan.memory import Shape
from gptmill.plan.sizes import language_model_size
from tests.unit.plan.test_sizes import ADAMW

XL = gpt2_config("1558M")
PARAMETERS = 1_557_611_200  # of GPT-2 XL, as `transformers` counts them
BFLOAT16 = Compute(half=True, device="cuda")


def of_xl(strategy: str, processes: int, optimizer: Optimizer = ADAMW) -> int:
    size = language_model_size(XL, optimizer)
    return memory_of(size, XL, Shape(1, 1024), BFLOAT16, strategy, processes).total


def test_model_states_are_shared_out_as_zero_has_it() -> None:
    """The heaviest moment of many processes is the evaluation, for which weights are gathered. It
    holds ZeRO's 16 bytes a parameter without 4 of gradients, and 4 of the best weights so far."""
    embedding = 4 * 50257 * 1600  # a tied matrix stands twice among the best weights
    shared_out = 16 * PARAMETERS + embedding
    assert of_xl("fsdp2", 8) - of_xl("fsdp2", 64) == pytest.approx(shared_out * 7 / 64, rel=1e-3)


def test_traffic_is_twice_the_gradients_under_ddp_and_half_as_much_again_under_fsdp2() -> None:
    """ZeRO, section 7: 2Ψ and 3Ψ numbers, if weights and gradients are of one precision."""
    size = language_model_size(XL, ADAMW)
    numbers = PARAMETERS * 7 / 8
    float32 = Compute(half=False)
    assert traffic(size, "ddp", 8, 4, float32) == pytest.approx(2 * 4 * numbers)
    assert traffic(size, "fsdp2", 8, 1, float32) == pytest.approx(3 * 4 * numbers)
    assert traffic(size, "fsdp2", 8, 4, BFLOAT16) == pytest.approx((2 * 4 * 2 + 4) * numbers)
    assert traffic(size, "ddp", 1, 1, float32) == 0


def test_a_step_by_hand() -> None:
    """GPT-2 XL on 8 A100s within a machine: all traffic hides, so a step is its FLOPs."""
    found = share("ddp", XL, ADAMW, 8, 512, ACCELERATORS["a100"], mfu=0.5)
    flops = (6 * (48 * 12 * 1600**2 + 50257 * 1600) + 12 * 48 * 1600 * 1024) * 512 * 1024
    assert found.efficiency == 1
    assert found.rows * found.accumulation == 64
    assert found.seconds == pytest.approx(flops / (8 * 0.5 * 312e12))
    steps = 20 * PARAMETERS / (512 * 1024)
    assert found.hours == pytest.approx(steps * found.seconds / 3600)


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture) -> None:
    main(["plan", "--processes", "1", "--memory", "4", "--json"])
    models = json.loads(capsys.readouterr().out)["models"]
    assert models["params.yaml"]["1"]["rows"] and models["1558M"] == {}
    with pytest.raises(UserError, match="share 8 rows"):
        plan_cluster(load(), ACCELERATORS["h100"], [16], 8, 0.4)
