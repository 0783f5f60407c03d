"""A model's blocks compiled by torch, where the run file asks for it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from opd.errors import ConfigError
from opd.models.language import LanguageModel
from opd.models.packing import HALF, TOLERANCE, distance


def compile_blocks(language_model: LanguageModel, key: str) -> None:
    """Compile the model's blocks for forward passes from now on, and prove it on a short one; copies are compiled too.

    Blocks of one shape share what is compiled, which takes any number of rows and columns. The names of parameters
    stay. A pass with a cache, as in rollouts, is not compiled.

    Raises:
        ConfigError: the model has no blocks, or torch cannot compile them here.
    """
    model = language_model.model
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    fix = "Fix: leave compile out"
    if not blocks:
        raise ConfigError(f"compile: {key} '{language_model.source}' has no blocks that transformers names. {fix}")
    ids = torch.arange(24).reshape(2, 12) % language_model.rows
    trains = any(p.requires_grad for p in model.parameters())
    with torch.set_grad_enabled(trains):
        eager = language_model.layers(ids, None, ())[0].detach()
        run = _compiled()
        for block in blocks:
            block.forward = types.MethodType(run, block)
        try:
            states = language_model.layers(ids, None, ())[0]
            if trains:
                states.sum().backward()
        except Exception as error:  # a missing compiler, or an architecture that torch cannot follow
            reason = " ".join(str(error).split()[:30]) or type(error).__name__
            raise ConfigError(
                f"compile: torch cannot compile {key} '{language_model.source}' here ({reason}). {fix}"
            ) from error
    model.zero_grad(set_to_none=True)
    off = float(distance(states.detach(), eager))
    if not off < TOLERANCE.get(language_model.autocast or eager.dtype, HALF):
        raise ConfigError(f"compile: {key} '{language_model.source}' computes other states ({off:.0e} off). {fix}")


def _compiled() -> Callable[..., Any]:
    """The ``forward`` of the blocks of one model and its copies; as a method, so that a copied block has its own."""

    @functools.cache
    def compiled(training: bool, trains: bool) -> Callable[..., Any]:
        # torch counts compiled versions per code object, and stops after eight; each of these has its own.
        own = types.FunctionType(_forward.__code__.replace(), globals())
        return torch.compile(own, dynamic=True)

    def run(block: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
            return _forward(block, *args, **kwargs)
        trains = any(p.requires_grad for p in block.parameters())
        return compiled(torch.is_grad_enabled(), trains)(block, *args, **kwargs)

    return run


def _forward(block: Any, *args: Any, **kwargs: Any) -> Any:
    return type(block).forward(block, *args, **kwargs)
