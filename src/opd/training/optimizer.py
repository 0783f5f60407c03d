"""The optimizer step: learning-rate schedule and clipping. Updates that are not finite are never applied."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from opd.distributed import World, divided_as, is_divided, part_of, whole_of
from opd.errors import ConfigError
from opd.training.moments import KEYS, StateDtype, make_adamw


class Optimizer:
    """AdamW with warm-up and decay, over all parameters that train.

    Args:
        model: parameters with ``requires_grad`` train.
        lr: peak learning rate.
        steps: length of the run, for the decay.
        warmup: steps of linear warm-up.
        schedule: decay to zero after the warm-up.
        grad_clip: largest gradient norm.
        state: dtype of AdamW's two moving averages.
        world: the processes whose gradients are added.

    Raises:
        ConfigError: several processes divide the weights, and the averages are not float32.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        steps: int,
        warmup: int = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        grad_clip: float = 1.0,
        state: StateDtype = "float32",
        world: World | None = None,
    ) -> None:
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if state != "float32" and is_divided(model):
            raise ConfigError(
                f"optimizer.state: {state} does not work with weights that several processes divide. Fix: set "
                "optimizer.shard=false, or optimizer.state=float32"
            )
        self.adamw = make_adamw(list(self.named.values()), state, lr=lr, betas=betas, weight_decay=weight_decay)
        self.keys = KEYS[state]
        self.fused = bool(self.adamw.param_groups[0].get("fused"))
        self.peak = lr
        self.steps = steps
        self.warmup = warmup
        self.schedule = schedule
        self.grad_clip = grad_clip
        self.world = world or World()

    def lr(self, step: int) -> float:
        """Learning rate of a step: a pure function, so that a resumed run needs no schedule state."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        if self.schedule == "linear":
            return self.peak * (1 - done)
        if self.schedule == "cosine":
            return self.peak * (1 + math.cos(math.pi * done)) / 2
        return self.peak

    def step(self, step: int, loss: float, *, scale: float = 1.0) -> float | None:
        """Apply the gradients, at ``scale`` times the step's learning rate, and clear them.

        Returns:
            The gradient's norm before clipping; None if it or the loss is not finite, in which case nothing is applied.
        """
        self.world.add_gradients(self.named.values())
        norm = float(whole_of(torch.nn.utils.clip_grad_norm_(list(self.named.values()), self.grad_clip)))
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            for group in self.adamw.param_groups:
                group["lr"] = scale * self.lr(step)
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return norm if finite else None

    def finite(self) -> bool:
        """Whether all weights that train are finite."""
        return self.world.all(all(bool(part_of(p).isfinite().all()) for p in self.named.values()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state as named tensors, for safetensors."""
        return {
            f"{name}.{key}": value if isinstance(value, torch.Tensor) else torch.tensor(float(value))
            for name, parameter in self.named.items()
            for key, value in self.adamw.state.get(parameter, {}).items()
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what ``tensors`` returned.

        Raises:
            ValueError: the names or shapes are not those of this optimizer.
        """
        self.adamw.state.clear()
        if odd := tensors.keys() - {f"{name}.{key}" for name in self.named for key in self.keys}:
            raise ValueError(f"the optimizer has no '{min(odd)}'")
        for name, parameter in self.named.items():
            state = {key: tensors[f"{name}.{key}"] for key in self.keys if f"{name}.{key}" in tensors}
            if state:  # none before the parameter's first gradient
                _check(name, state, parameter, self.keys[:3])
                moved: dict[str, Any] = {key: value.to(parameter.device).clone() for key, value in state.items()}
                if self.keys == KEYS["float32"]:
                    moved |= {k: divided_as(parameter, moved[k]).clone() for k in self.keys[1:]}
                if "qmap1" in self.keys:  # bitsandbytes counts in Python
                    moved["step"] = int(state["step"])
                elif not self.fused:  # the fused kernel alone counts on the GPU
                    moved["step"] = state["step"].cpu().clone()
                self.adamw.state[parameter] = moved


def _check(name: str, state: dict[str, torch.Tensor], parameter: torch.Tensor, needed: tuple[str, ...]) -> None:
    for key in needed:
        if key not in state:
            raise ValueError(f"the optimizer's '{name}.{key}' is missing")
        if state[key].shape != (() if key == "step" else parameter.shape):
            raise ValueError(f"the shape of the optimizer's '{name}.{key}' differs from the parameter's")
