"""Weights that are divided among the ranks."""

from __future__ import annotations

from torch import Tensor


def divided_as(parameter: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of a tensor, divided as a parameter is; all of it if that is not divided."""
    return whole
