"""Weights that are divided among the ranks (FSDP2): each keeps a part of every tensor and gathers blocks to use them.

The losses read the whole output head. It is gathered with the last forward pass of a block, and its gradient is divided
again, like that of every other weight.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

READ = "opd_read"
"""Method of a divided model that runs its transformer; FSDP2 gathers the weights around methods that it knows."""


BLOCKS = "opd_blocks"
"""Attribute of a divided model: its blocks."""


def divide(
    model: Any, transformer: nn.Module, blocks: Sequence[nn.Module], mesh: Any, dtype: torch.dtype | None
) -> None:
    """Divide a model's weights in place: each block for itself, and the rest with the output head.

    Args:
        model: whole, with the same weights on every rank.
        transformer: the part of it that gives the last hidden states.
        blocks: its blocks, which are gathered one at a time.
        mesh: the ranks; of two dimensions, the first one keeps copies.
        dtype: of the gathered weights; gradients are added in float32. None for the weights' own.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing is changed in place
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    add_read(model, transformer, blocks)


def add_read(model: Any, transformer: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Give a model that FSDP2 divides the method ``READ``.

    Args:
        transformer: the part of it that gives the last hidden states.
        blocks: its blocks, which are gathered one at a time; what else was gathered stays so until the backward pass.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    def read(model: Any, **inputs: Any) -> tuple[Tensor, Any]:
        out = transformer(**inputs)
        return out.last_hidden_state, out.hidden_states

    setattr(model, READ, MethodType(read, model))
    setattr(model, BLOCKS, tuple(blocks))
    register_fsdp_forward_method(model, READ)


def in_parts(device: str, size: int, groups: int) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` by which each rank reads its part of every tensor and no other.

    Args:
        device: the run's.
        size: number of ranks.
        groups: of ranks, each of which has all weights; 0 to divide nothing.

    Returns:
        Empty where weights cannot be read in parts: transformers divides them on the machine's accelerator alone.
    """
    there = torch.accelerator.current_accelerator()
    if not groups or device.partition(":")[0] != (there.type if there else "cpu"):
        return {}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=size // groups, dp_replicate_size=groups)}


def mesh_of(device: str, size: int, replicate: int) -> Any:
    """The ranks as a mesh: ``replicate`` groups, each of which has all weights among its ranks."""
    from torch.distributed.device_mesh import init_device_mesh

    if replicate == 1:
        return init_device_mesh(device, (size,))
    return init_device_mesh(device, (replicate, size // replicate), mesh_dim_names=("replicate", "shard"))


def is_divided(model: nn.Module) -> bool:
    """Whether a model's weights are divided."""
    return hasattr(model, READ)


def release(model: nn.Module) -> None:
    """Let go of the weights that a divided model's last forward pass has gathered; nothing for any other model."""
    shards: list[Any] = [module for module in model.modules() if hasattr(module, "reshard")]
    for shard in shards:
        shard.reshard()


def whole_of(tensor: Tensor) -> Tensor:
    """A divided tensor as a whole; every rank has to ask for it. Any other tensor as it is."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def part_of(tensor: Tensor) -> Tensor:
    """This rank's part of a divided tensor; any other tensor as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def divided_as(parameter: Tensor, whole: Tensor) -> Tensor:
    """A tensor divided as a parameter is, without any exchange; as it is if the parameter is not divided."""
    if not hasattr(parameter, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    there: Any = parameter
    moved = whole.to(there.device)
    return distribute_tensor(moved, there.device_mesh, there.placements, src_data_rank=None)


def wholes(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors in memory of the CPU, one after the other; tied ones stay one tensor.

    Args:
        keep: whether this rank wants them; every rank has to take part.
    """
    found: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        place = part_of(tensor).data_ptr()
        if hasattr(tensor, "full_tensor") and place not in known:
            whole = whole_of(tensor)
            known[place] = whole.cpu() if keep else whole.new_empty(0)
        if keep:
            found[name] = known.get(place, tensor)
    return found


DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
"""Names of dtypes in safetensors files."""


def write_wholes(tensors: Mapping[str, Tensor], path: Path | None) -> None:
    """Write a safetensors file of whole tensors, of which one at a time is in memory.

    The writer of ``torch.distributed.checkpoint`` needs no gathering. But to leave one ordinary file it writes every
    byte a second time, after it has read the parts of all ranks from the disk.

    Args:
        path: None on ranks that only take part; every rank has to.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") if path else nullcontext() as file:
        if file:
            file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            whole = whole_of(tensor.detach())
            if file:
                file.write(whole.cpu().contiguous().flatten().view(torch.uint8).numpy().data)


@contextmanager
def gathered(models: Sequence[nn.Module]) -> Iterator[None]:
    """All weights of divided models on every rank, so that each can generate without the others."""
    divided = [model for model in models if is_divided(model)]
    blocks = {block for model in divided for block in getattr(model, BLOCKS)}
    shards: list[Any] = [module for model in divided for module in model.modules() if hasattr(module, "unshard")]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()
            shard.set_reshard_after_forward(shard in blocks, recurse=False)
