"""From named tensors to a module: every name accounted for, every tensor checked, none copied.

Hugging Face folders and OpenAI checkpoints go through here, under Hugging Face's names and in its
orientation: the weights of `Conv1D` layers are [in, out], the transpose of our linear layers. A
transpose is a view, and a matrix product takes either orientation at the same speed.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptmill.errors import UserError
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# Buffers that old checkpoints carry: the causal triangle and the value written over it.
MASK_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
POSITIONS, EMBEDDING, HEAD = "transformer.wpe.weight", "transformer.wte.weight", "lm_head.weight"
# What DistributedDataParallel and torch.compile put into the names of the model that they hold.
WRAPPERS = ("module", "_orig_mod")
LISTED = 5  # names in an error
COMPARED_ROWS = 4096


class Tensors(Protocol):
    """Named tensors in some file; `read` gives rows in float32, a view where it can."""

    origin: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor: ...


class Unfilled(TorchFunctionMode):
    """Parameters stay as they are made: random numbers mean nothing on the meta device, and asking
    for them there imports half of PyTorch's compiler."""

    RANDOM = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.RANDOM:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def assemble_language_model(
    config: GPT2Config, tensors: Tensors, context_length: int | None = None
) -> GPT2:
    """The language model; `context_length` below the checkpoint's crops the position table.

    Raises:
        UserError: missing, extra or misshapen tensors, values that are not finite, a tied head
            that differs, a context longer than the checkpoint's.
    """
    loaded = config if context_length is None else _cropped(config, context_length, tensors.origin)
    with torch.device("meta"), Unfilled():
        model, full = GPT2(loaded), GPT2(replace(config, bias=True, positions="learned"))
    _fill(model, full, tensors)
    if config.tied_head:
        model.lm_head.weight = model.transformer.wte.weight
    return model.eval()


def assemble_classifier(config: GPT2Config, labels: int, tensors: Tensors) -> GPT2Classifier:
    """The classifier of `labels` classes; errors as for the language model."""
    with torch.device("meta"), Unfilled():
        model = GPT2Classifier(config, labels)
        full = GPT2Classifier(replace(config, bias=True, positions="learned"), labels)
    _fill(model, full, tensors)
    return model.eval()


def _cropped(config: GPT2Config, context_length: int, origin: str) -> GPT2Config:
    if not 0 < context_length <= config.context_length:
        raise UserError(
            f"context_length {context_length}: {origin} has {config.context_length} positions, "
            "and can only be cropped to fewer"
        )
    return replace(config, context_length=context_length)


def _fill(model: nn.Module, full: nn.Module, tensors: Tensors) -> None:
    """Give `model`, built on the meta device, its parameters.

    `full` is the same architecture with all that Hugging Face's GPT-2 has; what `model` lacks of
    it must be zero in the checkpoint, or not there.
    """
    origin, shapes = tensors.origin, tensors.shapes
    stored = _stored_names(shapes, origin)
    wanted, allowed = _stored_shapes(model), _stored_shapes(full)
    _account(stored, wanted, allowed, origin)
    for name, shape in allowed.items():
        if name in stored and shapes[stored[name]] != shape:
            raise UserError(
                f"{origin}: {stored[name]} is {list(shapes[stored[name]])} and the config asks "
                f"for {list(shape)}"
            )
    for name, shape in wanted.items():
        tensor = tensors.read(stored[name], 0, shape[0])
        _check_finite(tensor, stored[name], origin)
        _set_parameter(model, name, tensor.t() if _is_transposed(name) else tensor)
    for name in (allowed.keys() - wanted.keys()) & stored.keys():
        if tensors.read(stored[name]).count_nonzero():
            raise UserError(
                f"{origin}: {stored[name]} is not zero, and the config says there is none"
            )
    if HEAD in stored and HEAD not in wanted:
        _check_tied(tensors, stored)


def _stored_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameters by Hugging Face's name, in its orientation; a tied head counts once."""
    return {
        name: tuple(reversed(parameter.shape)) if _is_transposed(name) else tuple(parameter.shape)
        for name, parameter in model.named_parameters()
    }


def _stored_names(names: Iterable[str], origin: str) -> dict[str, str]:
    """Our name of each stored tensor to its own: OpenAI's folders leave `transformer.` out, and a
    model saved inside a wrapper has the wrapper's name in its own."""
    stored: dict[str, str] = {}
    for name in names:
        ours = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if not ours.startswith(("transformer.", "lm_head.", "score.")):
            ours = f"transformer.{ours}"
        if ours in stored:
            raise UserError(f"{origin} holds both {stored[ours]} and {name}, which are the same")
        stored[ours] = name
    return stored


def _account(
    stored: dict[str, str],
    wanted: dict[str, tuple[int, ...]],
    allowed: dict[str, tuple[int, ...]],
    origin: str,
) -> None:
    """Nothing may be missing, and nothing left over but the short list of known extras."""
    if missing := sorted(wanted.keys() - stored.keys()):
        raise UserError(f"{origin} lacks {_listed(missing)}, which its config asks for")
    known = {name for name in stored if MASK_BUFFER.fullmatch(name)}
    if HEAD in stored and "score.weight" not in wanted:
        known.add(HEAD)
    if extra := sorted(stored[name] for name in stored.keys() - allowed.keys() - known):
        hint = ": it is a classifier" if "score.weight" in extra else ""
        raise UserError(f"{origin} has {_listed(extra)}, which no part of the model takes{hint}")


def _listed(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _check_finite(tensor: Tensor, name: str, origin: str) -> None:
    # The sum is finite if all values are, but for an overflow: only then look at each.
    if not torch.isfinite(tensor.sum()) and (bad := (~torch.isfinite(tensor)).nonzero()).numel():
        place = bad[0].tolist()
        raise UserError(
            f"{origin}: {name} has {len(bad)} values that are not finite, the first at {place}: "
            "the file is damaged or its training diverged"
        )


def _check_tied(tensors: Tensors, stored: dict[str, str]) -> None:
    """A head stored beside the embedding it is tied to must repeat it."""
    head, embedding = stored[HEAD], stored[EMBEDDING]
    shapes = tensors.shapes
    same = shapes[head] == shapes[embedding]
    for start in range(0, shapes[embedding][0], COMPARED_ROWS):
        rows = start, start + COMPARED_ROWS
        same = same and torch.equal(tensors.read(head, *rows), tensors.read(embedding, *rows))
    if not same:
        raise UserError(
            f"{tensors.origin}: {head} differs from {embedding}, and the config ties them: set "
            '"tie_word_embeddings": false if the head is its own'
        )


def _is_transposed(name: str) -> bool:
    return name.endswith(TRANSPOSED)


def _set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(tensor))
