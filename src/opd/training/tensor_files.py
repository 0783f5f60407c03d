"""The safetensors files of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from opd.models.weights import buffers, load_into, trained

BUFFERS = "buffers.safetensors"


def load_weights(model: nn.Module, file: Path, *, finite: bool = True) -> None:
    """Load the trained parameters from a checkpoint's file, and the buffers beside it.

    Raises:
        ValueError: names or shapes differ, or a value has to be finite and is not.
    """
    tensors = load_file(file)
    if finite:
        check_finite(tensors, file.name)
    load_into(trained(model), tensors)
    if own := buffers(model):
        load_into(own, load_file(file.with_name(BUFFERS)))


def check_finite(tensors: Mapping[str, Tensor], file: str) -> None:
    """Raises ``ValueError`` if a tensor of a file has a value that is not finite."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"'{name}' in '{file}' has a value that is not finite")


def holds(path: Path, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a file has exactly these tensors."""
    with safe_open(path, framework="pt") as file:
        return set(file.keys()) == parameters.keys() and all(
            file.get_slice(name).get_shape() == list(parameter.shape) for name, parameter in parameters.items()
        )


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors, wherever they are."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
