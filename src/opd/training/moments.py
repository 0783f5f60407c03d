"""AdamW with its two moving averages in float32, in bfloat16 or in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw

StateDtype = Literal["float32", "bfloat16", "8bit"]

KEYS: dict[StateDtype, tuple[str, ...]] = {
    "float32": ("step", "exp_avg", "exp_avg_sq"),
    "bfloat16": ("step", "exp_avg", "exp_avg_sq"),
    "8bit": ("step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"),
}
"""State of a parameter: steps taken, the averages of the gradient and its square, and the scales of 8-bit ones.

Every parameter has the first three, and the second and third have its shape."""

BYTES: dict[StateDtype, float] = {"float32": 8, "bfloat16": 4, "8bit": 2 + 2 * 4 / 256}
"""Bytes of both averages for each weight; 8-bit ones have a scale for each block of 256."""


def make_adamw(
    parameters: Sequence[Tensor], state: StateDtype, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer; one kernel for all parameters on a GPU, where the state is float32."""
    settings: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    if state == "8bit":
        from bitsandbytes import optim

        small: torch.optim.Optimizer = cast("Any", optim).AdamW8bit(parameters, **settings)
        return small
    if state == "bfloat16":
        return BFloat16AdamW(parameters, **settings)
    on_gpu = all(p.is_cuda and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(parameters, **settings, fused=True if on_gpu else None)


class BFloat16AdamW(torch.optim.AdamW):
    """AdamW that computes in float32 and keeps its averages in bfloat16, rounded up or down by chance.

    Rounding to the nearest would stop the average of squares: one step changes it by less than bfloat16 can tell apart.
    The chance depends on the step and the parameter alone, so a resumed run goes on bit for bit.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; a parameter without a gradient is left as it is."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    empty = torch.zeros_like(parameter, dtype=torch.bfloat16)
                    state.update(step=torch.zeros(()), exp_avg=empty, exp_avg_sq=empty.clone())
                average, square = state["exp_avg"].float(), state["exp_avg_sq"].float()
                adamw(
                    [parameter], [parameter.grad], [average], [square], [], [state["step"]], foreach=False,
                    amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"],
                    eps=group["eps"], maximize=False,
                )  # fmt: skip
                chance = torch.Generator(parameter.device).manual_seed(int(state["step"]) * 1_000_003 + number)
                state["exp_avg"].copy_(rounded(average, chance))
                state["exp_avg_sq"].copy_(rounded(square, chance))


def rounded(values: Tensor, chance: torch.Generator) -> Tensor:
    """float32 values that bfloat16 can hold: one of the two neighbours, the nearer one more often; unbiased."""
    noise = torch.randint(1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=chance)
    bits: Tensor = (values.view(torch.int32) + noise) & -(1 << 16)
    return bits.view(torch.float32)
