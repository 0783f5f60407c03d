"""Parameters of a model by name: those that train, how saved ones are put back, and which ones copies share."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opd.distributed import divided_as, whole_of

SAMPLED = 1024
"""Elements of each tensor that a label is made of, evenly spread; an update changes all."""


def label(parameters: Iterable[tuple[str, Tensor]], *facts: object) -> str:
    """A hash of each tensor's name, shape and dtype, of some of its elements, and of further facts."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, parameter in sorted(parameters, key=lambda pair: pair[0]):
        flat = whole_of(parameter.detach()).flatten()
        every = max(len(flat) // SAMPLED, 1)
        chosen = flat[::every][:SAMPLED].cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(chosen.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def label_of_start(model: nn.Module) -> str:
    """A label of the weights that a model is loaded with: of all, or of an adapter's base. Every rank has to ask."""
    parameters = dict(model.named_parameters())
    frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
    return label((frozen or parameters).items())


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name; tied ones appear once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to the weights, such as running means; those computed from the config are left out."""
    saved = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


@torch.no_grad()
def load_into(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into parameters, in place.

    Raises:
        ValueError: the names or shapes differ.
    """
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())
        raise ValueError(f"the file and the model differ in '{odd[0]}'")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            shapes = f"{list(tensors[name].shape)} and {list(parameter.shape)}"
            raise ValueError(f"the shapes of '{name}' in the file and the model differ, {shapes}")
    for name, parameter in parameters.items():
        parameter.copy_(divided_as(parameter, tensors[name]))


def shared_copy(module: nn.Module, *, trained: bool = False) -> Any:
    """A copy with its own trainable parameters; the others, and buffers, are the same tensors.

    Args:
        trained: the trainable parameters are new ones around the same tensors.
    """
    same: dict[int, Any] = {id(p): p for p in module.parameters() if not p.requires_grad}
    if trained:
        same |= {id(p): nn.Parameter(p.detach()) for p in module.parameters() if p.requires_grad}
    return copy.deepcopy(module, same | {id(b): b for b in module.buffers()})
