"""Tensors that several processes share: gathered whole, cut into shards, spread over a mesh.

A sharded parameter is PyTorch's `DTensor`. A plain tensor passes through every function here as it
is, so one process runs the same code. `torch.distributed.tensor` takes a second to import, so it is
imported where something is sharded.
"""

import warnings
from functools import partial
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def is_sharded(tensor: Any) -> bool:
    """Whether each process holds a part of the tensor alone."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, on the host if it was sharded. Every process has to call this."""
    return tensor.full_tensor().cpu() if is_sharded(tensor) else tensor


def saved(tensor: Tensor) -> Tensor:
    """The full tensor in the first process; nothing in the others, so that a machine holds it once.
    Every process has to call this."""
    if not is_sharded(tensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if distributed.get_rank() == 0 else torch.empty(0)


def local(tensor: Tensor) -> Tensor:
    """This process's part, which shares memory with the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The full tensor of which every process has a part, cut as `like` is."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    layout = {"shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(part, like.device_mesh, like.placements, **layout).full_tensor()


def sharded(full: Tensor, like: Tensor) -> Tensor:
    """The full tensor, which every process has, cut as `like` is: no bytes are sent."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    full = full.to(like.to_local().device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def saved_states(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's `state_dict` with full tensors, as `saved` has them."""
    values = optimizer.state_dict()
    states = {
        index: {name: saved(value) for name, value in state.items()}
        for index, state in values["state"].items()
    }
    return values | {"state": states}


def sharded_states(values: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A `state_dict` of full tensors, cut as the optimizer's parameters are, and laid out as they
    are: a fused step walks through the memory of both, whatever their strides say."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def cut(index: int, value: Tensor) -> Tensor:
        like = parameters[index]
        if value.shape != like.shape:
            return value
        if is_sharded(like):
            return sharded(value, like)
        if value.stride() == like.stride():
            return value
        return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)

    states = {
        index: {name: cut(index, value) for name, value in state.items()}
        for index, state in values["state"].items()
    }
    return values | {"state": states}


def fully_sharded(
    model: nn.Module, device: torch.device, dtype: torch.dtype, cpu_offload: bool
) -> nn.Module:
    """FSDP2 (Zhao et al. 2023; `fully_shard`): every block is gathered when it computes.

    Parameters, gradients and optimizer states are sharded by rows. Gradients are summed in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    # Logits are a view, and nothing works on them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    half = dtype != torch.float32
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=dtype if half else None, reduce_dtype=torch.float32 if half else None
        ),
    }
    if cpu_offload and device.type != "cpu":
        options["offload_policy"] = CPUOffloadPolicy()
    # Weights from a published file are transposed views, and FSDP2 refuses those.
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    for block in model.transformer.h:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def checkpoint_blocks(model: nn.Module) -> None:
    """Keep each block's input alone and compute the block again in the backward pass (Chen et al.
    2016): a third more computation for a fraction of the memory."""
    for block in model.transformer.h:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
