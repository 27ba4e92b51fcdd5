"""OpenAI's GPT-2 checkpoints: their files, the book's two dictionaries, and one table of names.

*Settings* is `hparams.json`. *Params* nests the arrays as the book does (Raschka 2024, chapter 5):
`params["wte"]`, `params["wpe"]`, `params["blocks"][i]["attn"]["c_attn"]["w"]`, …, and the final
LayerNorm's `params["g"]`, `params["b"]`.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from torch import Tensor
from tqdm import tqdm

from gptmill.data.fetch import mirror_from_environment, offline_from_environment
from gptmill.errors import UserError
from gptmill.files import read_json, sha256
from gptmill.model.config import GPT2_SIZES, GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import BytePairTokenizer, load_gpt2_files
from gptmill.weights.assemble import assemble_language_model
from gptmill.weights.tensorflow_bundle import TensorBundle

ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/models"
DATA = "model.ckpt.data-00000-of-00001"
# The order of a download: what is small and tells most comes first.
FILES = ("hparams.json", "encoder.json", "vocab.bpe", "model.ckpt.index", DATA)
# The tokenizer is the same for all sizes. OpenAI publishes no hash of the weights; the checkpoint
# holds a checksum of every tensor, which reading verifies.
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
TIMEOUT_SECONDS = (10, 60)  # to connect; between two bytes
CHUNK_BYTES = 1 << 20
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
    if not isinstance(settings.get("n_layer"), int):
        raise UserError(f"{folder / 'hparams.json'} has no n_layer: not GPT-2's settings")
    bundle = TensorBundle(_checkpoint_prefix(folder))
    params: dict[str, Any] = {"blocks": [{} for _ in range(settings["n_layer"])]}
    for name in bundle.entries:
        path = name.removeprefix(SCOPE).split("/")
        target = params
        if path[0].startswith("h") and path[0][1:].isdigit():
            layer = int(path.pop(0)[1:])
            if layer >= settings["n_layer"]:
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
            vocabulary_size=settings["n_vocab"],
            context_length=settings["n_ctx"],
            layers=settings["n_layer"],
            heads=settings["n_head"],
            width=settings["n_embd"],
            dropout=0.1,
        )
    except KeyError as error:
        raise UserError(f"{origin} lacks {error}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
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

    A partial file is continued. `GPTMILL_MIRROR` (a folder or an address, laid out HOST/PATH) is
    asked before OpenAI; `GPTMILL_OFFLINE` allows no network.

    Raises:
        UserError: an unknown size, no network, a server that refuses, a file that is short or has
            the wrong hash.
    """
    if size not in GPT2_SIZES:
        raise UserError(f"OpenAI has no GPT-2 '{size}': the sizes are {', '.join(GPT2_SIZES)}")
    folder = cache / size
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in FILES if not (folder / name).exists()]
    places = _places(size)
    for name in missing:
        failures = [_try(place, name, folder) for place in places]  # stops at the first success
        if not (folder / name).exists():
            reasons = "; ".join(failure for failure in failures if failure)
            raise UserError(
                f"cannot get {name} of OpenAI's {size}: {reasons}. Put {', '.join(missing)} from "
                f"{ADDRESS}/{size}/ into {folder}, or name a mirror (GPTMILL_MIRROR)"
            )
    return folder


def _places(size: str) -> list[str]:
    """Folders and addresses that may have the files, in the order to ask them."""
    mirror = mirror_from_environment()
    path = f"{ADDRESS.removeprefix('https://')}/{size}"
    places = [f"{mirror.rstrip('/')}/{path}"] if mirror else []
    return [*places, f"{ADDRESS}/{size}"]


def _try(place: str, name: str, folder: Path) -> str | None:
    """Fetch one file from one place unless it is here; the reason if that failed."""
    target, partial = folder / name, folder / f"{name}.partial"
    if target.exists():
        return None
    remote = place.startswith(("http://", "https://"))
    if remote and offline_from_environment():
        return f"{place}: not asked, for GPTMILL_OFFLINE is set"
    transfer: Callable[[str, Path], None] = _download if remote else _copy
    try:
        transfer(f"{place}/{name}", partial)
    except (requests.RequestException, OSError) as error:
        return f"{place}: {error}"
    if name in SHA256 and sha256(partial) != SHA256[name]:
        partial.unlink()
        return f"{place}: {name} has the wrong SHA-256, not {SHA256[name][:12]}…"
    partial.replace(target)
    return None


def _copy(source: str, partial: Path) -> None:
    shutil.copyfile(source, partial)


def _download(address: str, partial: Path) -> None:
    """Continue `partial` to the length that the server tells."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == 416:  # nothing is missing, or what is here is not this file
            partial.unlink()
            raise OSError("the partial file did not fit and was removed; run again")
        response.raise_for_status()
        start = have if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            partial.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and partial.stat().st_size != total:
        raise OSError(f"the transfer ended at {partial.stat().st_size:,} of {total:,} bytes")
