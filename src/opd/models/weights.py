"""Parameters of a model by name: those that train, and how saved ones are put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name; tied ones appear once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_into(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into parameters, in place.

    Raises:
        ValueError: the names differ.
    """
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())
        raise ValueError(f"the file and the model differ in '{odd[0]}'")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
