"""The f-divergence family D(student ‖ teacher): a divergence is two element-wise functions.

p is the student's probability of one token, q the teacher's; sums run over the vocabulary.

    density:  d(p, q), whose sum is the divergence
    slope:    p · ∂d/∂p, from which every gradient follows: dD/dlogit_i = slope_i − p_i Σ_j slope_j

Both get log p, log q, p and q, so nothing divides and nothing overflows: where a probability has underflowed
to 0 its logarithm is still finite, and 0 · log 0 = 0. To add a divergence is to ``register`` two such lines.

A constant times (p − q) may stand in a density: it sums to zero. Here it is chosen so that d and ∂d/∂p vanish
at p = q. Then the rounding errors of the logarithms cancel to first order; without it they are of the size
1e-6, larger than the divergence of two models that are nearly equal.

Suffixes: N rows of a chunk, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.errors import ConfigError

ElementWise = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""(log_p, log_q, p, q, beta), float32 [N, V] and a number -> a new float32 [N, V]. Inputs are not to be changed."""

FAR = 80.0
"""Largest log q − log p of a p that has not underflowed; exp of it is still finite in float32."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Two element-wise functions.

    Attributes:
        source: where the formula comes from.
        offset: the multiple of (p − q) in the density, which clipping takes out, as a clipped sum of it is not zero;
            None: the divergence cannot be clipped.
    """

    density: ElementWise
    slope: ElementWise
    source: str = ""
    offset: float | None = None


DIVERGENCES: dict[str, Divergence] = {}
"""Every divergence by name; ``register`` adds one."""


def register(
    name: str,
    density: ElementWise,
    slope: ElementWise,
    source: str = "",
    *,
    offset: float | None = None,
) -> None:
    """Add the divergence Σ density(p, q), whose slope is p · ∂density/∂p.

    Args:
        name: what ``divergence`` will be called in a run file or a call.
        density, slope: element-wise functions of (log_p, log_q, p, q, beta); ``beta`` is theirs to use or ignore.
        source, offset: as in ``Divergence``.

    Raises:
        ConfigError: the name is taken.

    Source: tests/fidelity/test_divergences.py registers one, Pearson's χ², and proves it.
    """
    if name in DIVERGENCES:
        raise ConfigError(f"a divergence called '{name}' exists. Fix: choose another name")
    DIVERGENCES[name] = Divergence(density, slope, source, offset)


def check_divergence(name: str, *, beta: float) -> Divergence:
    """The divergence called ``name``.

    Raises:
        ConfigError: there is none, or beta makes it vanish.
    """
    if name not in DIVERGENCES:
        raise ConfigError(f"loss.divergence: there is no divergence '{name}'. Fix: choose {', '.join(DIVERGENCES)}")
    if name in ("skew_forward", "skew_reverse", "alpha") and not 0 < beta < 1:
        raise ConfigError(
            f"loss.divergence.beta={beta}: {name} needs a beta between 0 and 1. Fix: set loss.divergence.beta=0.1, "
            "DistiLLM's skew"
        )
    if name == "jsd" and not 0 < beta < 1:
        raise ConfigError(
            f"loss.divergence.beta={beta}: jsd needs a beta between 0 and 1; at 0 and 1 it is always zero. Fix: "
            "use forward_kl (what jsd / beta tends to at 0) or reverse_kl (what jsd / (1 - beta) tends to at 1)"
        )
    return DIVERGENCES[name]


@functools.cache
def clipped(name: str, limit: float) -> Divergence:
    """The divergence whose terms are cut: Σ min(term, limit), where a term is as the source writes it.

    What lies above the limit has no gradient of its own, so that a few style tokens cannot outweigh all others.
    A clipped sum is no divergence: it may be negative.

    Args:
        name: a divergence with an offset: forward_kl (q log(q/p)), reverse_kl (p log(p/q)) or jsd.
        limit: nats.

    Raises:
        ConfigError: another divergence.

    Source: OPSD, arXiv 2601.18734. Proof: tests/fidelity/test_divergences.py.
    """
    whole = DIVERGENCES[name]
    if (offset := whole.offset) is None:
        those = ", ".join(known for known, divergence in DIVERGENCES.items() if divergence.offset is not None)
        raise ConfigError(f"loss.signal.clip: {name} cannot be clipped. Fix: leave clip out, or choose {those}")

    def term(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, beta: float) -> Tensor:
        return whole.density(log_p, log_q, p, q, beta).sub_(p - q, alpha=offset)

    def slope(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, beta: float) -> Tensor:
        own = whole.slope(log_p, log_q, p, q, beta).sub_(p, alpha=offset)
        return own.masked_fill_(term(log_p, log_q, p, q, beta) > limit, 0.0)

    return Divergence(lambda *both: term(*both).clamp_max_(limit), slope, f"{whole.source}; clipped, arXiv 2601.18734")


def _log_mixture(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """log(β q + (1 − β) p), finite where both have underflowed."""
    return torch.lerp(p, q, beta).clamp_min_(torch.finfo(p.dtype).tiny).log_()


def _jsd_density(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, beta: float) -> Tensor:
    log_m = _log_mixture(p, q, beta)
    teacher = (log_q - log_m).mul_(q)
    return torch.sub(log_p, log_m, out=log_m).mul_(p).mul_(1 - beta).add_(teacher, alpha=beta)


def _jsd_slope(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, beta: float) -> Tensor:
    """(1 − β) p log(p / m), from log q − log p: near equality log p − log m would be nothing but rounding."""
    excess = (log_q - log_p).clamp_max_(FAR).expm1_()
    return excess.mul_(beta).log1p_().mul_(p).mul_(beta - 1)


def _skew_reverse_slope(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, beta: float) -> Tensor:
    log_m = _log_mixture(q, p, beta)
    pull = (p - q).mul_(beta * (1 - beta)).div_(log_m.exp())
    return (log_p - log_m).sub_(pull).mul_(p)


def _alpha_density(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, beta: float) -> Tensor:
    ratio = log_q - log_p
    geometric = (log_p + beta * ratio).exp_()
    far = torch.lerp(p, q, beta).sub_(geometric)
    # Near equality three probabilities would cancel; small powers do not.
    near = ratio.clamp(-1, 1)
    near = (beta * near.expm1()).sub_((beta * near).expm1_()).mul_(p)
    return torch.where(ratio.abs() < 1, near, far).div_(beta * (1 - beta))


# KL(teacher ‖ student) = Σ q (log q − log p): covers every mode of the teacher.
register(
    "forward_kl",
    density=lambda log_p, log_q, p, q, beta: (log_q - log_p).mul_(q).add_(p - q),
    slope=lambda log_p, log_q, p, q, beta: p - q,
    source="GKD, arXiv 2306.13649",
    offset=1.0,
)
# KL(student ‖ teacher) = Σ p (log p − log q): seeks one mode, never where the teacher has nothing.
register(
    "reverse_kl",
    density=lambda log_p, log_q, p, q, beta: (log_p - log_q).mul_(p).add_(q - p),
    slope=lambda log_p, log_q, p, q, beta: (log_p - log_q).mul_(p),
    source="GKD, arXiv 2306.13649; MiniLLM, arXiv 2306.08543",
    offset=-1.0,
)
# β KL(teacher ‖ M) + (1 − β) KL(student ‖ M), M = β q + (1 − β) p: bounded, between the two.
register(
    "jsd",
    density=_jsd_density,
    slope=_jsd_slope,
    source="GKD, arXiv 2306.13649",
    offset=0.0,
)
# KL(teacher ‖ β q + (1 − β) p): forward KL that stays finite where the student has nothing.
register(
    "skew_forward",
    density=lambda log_p, log_q, p, q, beta: (log_q - _log_mixture(p, q, beta)).mul_(q).add_(p - q, alpha=1 - beta),
    slope=lambda log_p, log_q, p, q, beta: (p - q).mul_((1 - beta) ** 2).mul_(p).div_(_log_mixture(p, q, beta).exp_()),
    source="SKL of DistiLLM, arXiv 2402.03898, where β is α = 0.1",
)
# KL(student ‖ (1 − β) q + β p): reverse KL bounded by −log β a token.
register(
    "skew_reverse",
    density=lambda log_p, log_q, p, q, beta: (log_p - _log_mixture(q, p, beta)).mul_(p).add_(q - p, alpha=1 - beta),
    slope=_skew_reverse_slope,
    source="SRKL of DistiLLM, arXiv 2402.03898, where β is α = 0.1",
)
# (1 − Σ q^β p^(1 − β)) / (β (1 − β)): between reverse KL (β → 0) and forward KL (β → 1).
register(
    "alpha",
    density=_alpha_density,
    slope=lambda log_p, log_q, p, q, beta: p.sub((log_p + beta * (log_q - log_p)).exp_()).div_(beta),
    source="Amari's α-divergence, in the parametrisation of Minka, MSR-TR-2005-173",
)
# Σ |p − q| / 2: bounded, and as robust to one wild token as can be.
register(
    "total_variation",
    density=lambda log_p, log_q, p, q, beta: (p - q).abs_().mul_(0.5),
    slope=lambda log_p, log_q, p, q, beta: (p - q).sign_().mul_(p).mul_(0.5),
    source="f-DISTILL, arXiv 2307.15190",
)
