"""The architecture of a model to start from, without reading or fetching its weights."""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import try_to_load_from_cache

from gptmill.errors import UserError
from gptmill.files import read_json
from gptmill.model.config import GPT2_SIZES, GPT2Config, from_json, gpt2_config
from gptmill.plan.sizes import FLOAT, language_model_size

REPOSITORIES = {
    "openai-community/gpt2": "124M",
    "openai-community/gpt2-medium": "355M",
    "openai-community/gpt2-large": "774M",
    "openai-community/gpt2-xl": "1558M",
}
DISTILLED = {"distilbert/distilgpt2": 6}  # layers of the 124M
PIPELINES_OWN = Path("models/pretrained")


class Architecture(NamedTuple):
    """A foundation: its configuration, bytes to fetch, and what was assumed of it."""

    config: GPT2Config
    download: int = 0
    assumed: str = ""


def architecture(
    source: str, location: str, revision: str, own: GPT2Config | None = None
) -> Architecture:
    """The configuration of a folder, a Hugging Face repository or an OpenAI size.

    Args:
        own: of the pipeline's pretrained model, where that is a stage of the plan.
    """
    if source == "openai" and location in GPT2_SIZES:
        config = gpt2_config(location)
        return Architecture(config, language_model_size(config).weights)
    if source == "huggingface":
        return _repository(location, revision)
    folder = Path(location)
    if own is not None and folder == PIPELINES_OWN:
        return Architecture(own)
    for name in ("config.json", "hparams.json"):
        if (folder / name).exists():
            return Architecture(_read(folder / name))
    said = f"{location}: no model there yet, taken for GPT-2 124M"
    return Architecture(gpt2_config("124M"), assumed=said)


def _repository(location: str, revision: str) -> Architecture:
    cached = try_to_load_from_cache(location, "config.json", revision=revision or None)
    if isinstance(cached, str):
        return Architecture(from_json(read_json(Path(cached)), cached))
    if location in DISTILLED:
        config = gpt2_config("124M")
        config = GPT2Config(**{**vars(config), "layers": DISTILLED[location]})
        return Architecture(config, _published_bytes(config))
    size = REPOSITORIES.get(location, "124M")
    config = gpt2_config(size)
    known = location in REPOSITORIES
    said = "" if known else f"{location}: not in the cache, taken for GPT-2 124M"
    return Architecture(config, _published_bytes(config), said)


def _published_bytes(config: GPT2Config) -> int:
    """OpenAI's models at Hugging Face hold each block's causal triangle beside the weights."""
    triangles = FLOAT * config.layers * config.context_length**2
    return language_model_size(config).weights + triangles


def _read(path: Path) -> GPT2Config:
    values = read_json(path, dict)
    if path.name == "config.json":
        return from_json(values, str(path))
    try:
        names = ("n_vocab", "n_ctx", "n_layer", "n_head", "n_embd")
        return GPT2Config(*(values[name] for name in names), dropout=0.1)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} has no {error}: not GPT-2's settings") from None
