"""Sampling options are declared once: each place that takes them has all of them, as declared."""

import argparse
import dataclasses

import pytest

from gptmill.cli.infer import add_sampling
from gptmill.errors import UserError
from gptmill.params import Sampling
from gptmill.sampling_options import SamplingOptions, declarations
from gptmill.tracking.registry import _signature

pytest.importorskip("fastapi")
from gptmill.serve.ollama_body import Options
from gptmill.serve.openai_body import Chat, Completion
from gptmill.serve.responses_body import Responses

NUMBERS = [one.name for one in dataclasses.fields(SamplingOptions) if one.name[:5] != "stop_"]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_place_has_it(name):
    parser = argparse.ArgumentParser()
    add_sampling(parser, temperature=0.5)
    assert name in vars(parser.parse_args([]))
    assert name in {param.name for param in _signature("generate").params}
    assert name in Sampling.model_fields or name == "seed"
    ollama = {"max_new_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
    assert ollama.get(name, name) in Options.model_fields
    for body, limit in ((Chat, "max_tokens"), (Completion, "max_tokens"),
                        (Responses, "max_output_tokens")):  # fmt: skip
        assert (limit if name == "max_new_tokens" else name) in body.model_fields


def test_defaults_are_the_protocols():
    assert (Options().temperature, Options().top_k, Options().top_p) == (0.8, 40, 0.9)
    chat = Chat(model="m", messages=[{"role": "user"}])
    assert (chat.temperature, chat.top_k, chat.top_p, chat.repetition_penalty) == (1, 0, 1, 1)
    signature = {param.name: param.default for param in _signature("generate").params}
    options = SamplingOptions()
    assert signature == {name: getattr(options, name) for name in NUMBERS}


@pytest.mark.parametrize(
    ("name", "values", "range_"),
    [
        ("max_new_tokens", (0, -1), "at least 1"),
        ("temperature", (-0.1, float("nan"), float("inf")), "at least 0"),
        ("top_k", (-1,), "at least 0"),
        ("top_p", (-0.1, 1.1, float("nan")), "between 0 and 1"),
        ("min_p", (-0.1, 1.1), "between 0 and 1"),
        ("repetition_penalty", (0, -1, float("inf")), "above 0"),
        ("seed", (-1, 2**64), "between 0 and"),
    ],
)
def test_a_value_out_of_its_range(name, values, range_):
    for value in values:
        with pytest.raises(UserError, match=f"^{name} is .*; it must be {range_}"):
            SamplingOptions(**{name: value})


def test_bounds_themselves_are_taken():
    SamplingOptions(max_new_tokens=1, top_p=0, min_p=1, seed=2**64 - 1)
    assert [one.name for one in declarations()] == NUMBERS
