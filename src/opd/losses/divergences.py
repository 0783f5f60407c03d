"""The f-divergence family D(student ‖ teacher): two element-wise functions each.

p is the student's probability, q the teacher's, at one position; sums run over the vocabulary.

    density:  d(p, q), whose sum is the divergence
    slope:    p · ∂d/∂p, from which every gradient follows: dD/dlogit_i = slope_i − p_i Σ_j slope_j

Both get log p, log q, p and q, so that nothing has to divide or overflow: where a probability has
underflowed to 0 its logarithm is still finite, and 0 times it is 0.
Suffixes: N rows of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.errors import ConfigError

ElementWise = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""(log_p, log_q, p, q, beta) -> a new tensor of their shape [N, V], float32. Inputs are not to be changed."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Two element-wise functions; ``source`` says where they come from."""

    density: ElementWise
    slope: ElementWise
    source: str


DIVERGENCES: dict[str, Divergence] = {
    # KL(teacher ‖ student) = Σ q (log q − log p): covers every mode of the teacher.
    "forward_kl": Divergence(
        density=lambda log_p, log_q, p, q, beta: (log_q - log_p).mul_(q),
        slope=lambda log_p, log_q, p, q, beta: -q,
        source="GKD, arXiv 2306.13649",
    ),
    # KL(student ‖ teacher) = Σ p (log p − log q): seeks modes. The slope's constant +p cancels in the gradient.
    "reverse_kl": Divergence(
        density=lambda log_p, log_q, p, q, beta: (log_p - log_q).mul_(p),
        slope=lambda log_p, log_q, p, q, beta: (log_p - log_q).mul_(p),
        source="GKD, arXiv 2306.13649; MiniLLM, arXiv 2306.08543",
    ),
    # β KL(teacher ‖ M) + (1 − β) KL(student ‖ M), M = β q + (1 − β) p.
    "jsd": Divergence(
        density=lambda log_p, log_q, p, q, beta: (
            (log_q - _log_mixture(p, q, beta)).mul_(q).mul_(beta)
            + (log_p - _log_mixture(p, q, beta)).mul_(p).mul_(1 - beta)
        ),
        slope=lambda log_p, log_q, p, q, beta: (log_p - _log_mixture(p, q, beta)).mul_(p).mul_(1 - beta),
        source="GKD, arXiv 2306.13649",
    ),
}
"""Every divergence by name; ``register`` adds one."""


def register(name: str, density: ElementWise, slope: ElementWise, source: str = "") -> None:
    """Add a divergence.

    Raises:
        ConfigError: the name is taken.
    """
    if name in DIVERGENCES:
        raise ConfigError(f"a divergence called '{name}' exists; choose another name")
    DIVERGENCES[name] = Divergence(density, slope, source)


def check_divergence(name: str, *, beta: float) -> Divergence:
    """The divergence called ``name``.

    Raises:
        ConfigError: there is none, or beta makes it vanish.
    """
    if name not in DIVERGENCES:
        raise ConfigError(f"loss.divergence: there is no divergence '{name}'; choose {', '.join(DIVERGENCES)}")
    if name == "jsd" and not 0 < beta < 1:
        raise ConfigError(
            f"loss.beta={beta}: jsd is zero for every pair at beta 0 and 1; use forward_kl (the limit at 0) or "
            "reverse_kl (the limit at 1)"
        )
    return DIVERGENCES[name]


def _log_mixture(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """log(β q + (1 − β) p), finite where both have underflowed."""
    return torch.lerp(p, q, beta).clamp_min_(torch.finfo(torch.float32).tiny).log_()
