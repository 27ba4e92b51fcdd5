"""OpenAI's GPT-2 checkpoints: their files, the book's two dictionaries, and one table of names.

*Settings* is `hparams.json`. *Params* nests the arrays as the book does (Raschka 2024, chapter 5):
`params["wte"]`, `params["wpe"]`, `params["blocks"][i]["attn"]["c_attn"]["w"]`, …, and the final
LayerNorm's `params["g"]`, `params["b"]`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptmill.errors import UserError
from gptmill.fetch.download import obtain
from gptmill.fetch.manifest import RemoteFile
from gptmill.files import read_json
from gptmill.model.config import GPT2_SIZES, GPT2Config, checked_size
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import BytePairTokenizer, load_gpt2_files
from gptmill.weights.assemble import assemble_language_model
from gptmill.weights.tensorflow_bundle import TensorBundle

ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/models"
DATA = "model.ckpt.data-00000-of-00001"
FILES = ("hparams.json", "encoder.json", "vocab.bpe", "model.ckpt.index", DATA)
# The tokenizer is the same for all sizes. OpenAI publishes no hash of the weights; the checkpoint
# holds a checksum of every tensor, which reading verifies.
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
SCOPE = "model/"  # of every variable in the checkpoint

# Hugging Face's name within a block, and OpenAI's path within params["blocks"][i].
BLOCK_NAMES = {
    "ln_1.weight": ("ln_1", "g"),
    "ln_1.bias": ("ln_1", "b"),
    "attn.c_attn.weight": ("attn", "c_attn", "w"),
    "attn.c_attn.bias": ("attn", "c_attn", "b"),
    "attn.c_proj.weight": ("attn", "c_proj", "w"),
    "attn.c_proj.bias": ("attn", "c_proj", "b"),
    "ln_2.weight": ("ln_2", "g"),
    "ln_2.bias": ("ln_2", "b"),
    "mlp.c_fc.weight": ("mlp", "c_fc", "w"),
    "mlp.c_fc.bias": ("mlp", "c_fc", "b"),
    "mlp.c_proj.weight": ("mlp", "c_proj", "w"),
    "mlp.c_proj.bias": ("mlp", "c_proj", "b"),
}
NAMES = {
    "wte.weight": ("wte",),
    "wpe.weight": ("wpe",),
    "ln_f.weight": ("g",),
    "ln_f.bias": ("b",),
}


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and params of an OpenAI checkpoint folder; arrays are views of its file.

    Raises:
        UserError: files missing, truncated or damaged, or variables that are no GPT-2's.
    """
    settings = read_json(folder / "hparams.json", dict)
    bundle = TensorBundle(_checkpoint_prefix(folder))
    layers = settings.get("n_layer")
    if type(layers) is not int or not 1 <= layers <= len(bundle.entries):
        raise UserError(
            f"{folder / 'hparams.json'}: n_layer is {layers!r}, which is not GPT-2's with "
            f"{len(bundle.entries)} tensors"
        )
    params: dict[str, Any] = {"blocks": [{} for _ in range(layers)]}
    for name in bundle.entries:
        path = name.removeprefix(SCOPE).split("/")
        target = params
        if path[0].startswith("h") and path[0][1:].isdigit():
            layer = int(path.pop(0)[1:])
            if layer >= layers:
                raise UserError(
                    f"{folder} has {name}, and hparams.json only {layer} layers or less"
                )
            target = params["blocks"][layer]
        elif path[0] == "ln_f":
            path.pop(0)
        for key in path[:-1]:
            target = target.setdefault(key, {})
        target[path[-1]] = _without_kernel_axis(bundle.array(name))
    return settings, params


def _checkpoint_prefix(folder: Path) -> Path:
    """OpenAI's `model.ckpt`, or what TensorFlow's own saver wrote: `model-N`, the last of them by
    the file `checkpoint`."""
    found = sorted(path.with_suffix("") for path in folder.glob("model*.index"))
    if folder / "model.ckpt" in found or not found:
        return folder / "model.ckpt"
    if len(found) == 1:
        return found[0]
    path, names = folder / "checkpoint", ", ".join(prefix.name for prefix in found)
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    latest = re.search(r'^model_checkpoint_path: "(?:.*[/\\])?([^"/\\]+)"', text, re.MULTILINE)
    if latest is None or folder / latest[1] not in found:
        raise UserError(
            f"{folder} has several checkpoints ({names}), and its file 'checkpoint' names none of "
            "them: keep the files of one"
        )
    return folder / latest[1]


def load_openai(folder: Path, context_length: int | None = None) -> tuple[GPT2, BytePairTokenizer]:
    """Model and tokenizer of an OpenAI checkpoint folder, every variable accounted for.

    Raises:
        UserError: as `read_checkpoint`; missing, extra or misshapen variables; settings that
            disagree with them; values that are not finite.
    """
    settings, params = read_checkpoint(folder)
    config = config_from_settings(settings, str(folder / "hparams.json"))
    model = assemble_language_model(config, Params(params, str(folder)), context_length)
    return model, load_gpt2_files(folder / "encoder.json", folder / "vocab.bpe")


def config_from_settings(settings: dict[str, Any], origin: str) -> GPT2Config:
    """`hparams.json` as an architecture; the published models were trained with dropout 0.1."""
    try:
        return GPT2Config(
            vocabulary_size=checked_size(settings, "n_vocab"),
            context_length=checked_size(settings, "n_ctx"),
            layers=checked_size(settings, "n_layer"),
            heads=checked_size(settings, "n_head"),
            width=checked_size(settings, "n_embd"),
            dropout=0.1,
        )
    except KeyError as error:
        raise UserError(f"{origin} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{origin}: {error}") from None


class Params:
    """The params dictionary under Hugging Face's names; what the table lacks keeps its own."""

    def __init__(self, params: dict[str, Any], origin: str) -> None:
        self.origin = origin
        self.arrays: dict[str, np.ndarray] = {}
        outer = {key: value for key, value in params.items() if key != "blocks"}
        self._take(outer, NAMES, "transformer.")
        for layer, block in enumerate(params["blocks"]):
            self._take(block, BLOCK_NAMES, f"transformer.h.{layer}.")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.arrays.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return torch.from_numpy(self.arrays[name][start:stop]).float()

    def _take(self, nested: dict[str, Any], names: dict[str, tuple], prefix: str) -> None:
        ours = {path: name for name, path in names.items()}
        for path, array in _leaves(nested):
            self.arrays[prefix + ours.get(path, "/".join(path))] = array


def _leaves(nested: dict[str, Any], path: tuple = ()) -> Iterator[tuple[tuple, np.ndarray]]:
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _without_kernel_axis(array: np.ndarray) -> np.ndarray:
    """OpenAI's linear layers are convolutions of width one: [1, in, out]."""
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


# --- Download


def download_openai(size: str, cache: Path) -> Path:
    """The checkpoint folder of a size (124M, 355M, 774M, 1558M), downloaded if it is not there.

    Raises:
        UserError: an unknown size, or as `gptmill.fetch.download.obtain`.
    """
    if size not in GPT2_SIZES:
        raise UserError(f"OpenAI has no GPT-2 '{size}': the sizes are {', '.join(GPT2_SIZES)}")
    folder = cache / size
    sources = {name: f"{ADDRESS}/{size}/{name}" for name in FILES}
    obtain({folder / n: RemoteFile(url, None, SHA256.get(n, "")) for n, url in sources.items()})
    return folder
