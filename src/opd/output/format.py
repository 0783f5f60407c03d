"""How figures are shown, wherever they are shown. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "teacher/"
"""Of figures that compare the student with its teacher."""

CONFLICT = "conflict/"
"""Of figures that compare several teachers with each other."""

PERCENT = (
    "accuracy",
    "avg@",
    "equal_groups",
    "gap_recovery",
    "invalid_call_rate",
    "repetition_rate",
    "teacher_accuracy",
    "truncation_rate",
)
HEADLINE_TEACHER = ("overlap@16", "entropy_gap", "reverse_kl")
"""Of the comparison with the teacher, what stands beside the headline figures; all of it is in metrics.jsonl."""


def figure(name: str, value: float) -> str:
    """A metric as a reader expects it: shares in percent, everything else with three decimals."""
    return f"{value:.1%}" if name.startswith(PERCENT) else f"{value:.3f}"


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures to show first: all but the details of the comparison with the teacher."""
    shown = {PREFIX + name for name in HEADLINE_TEACHER}
    return {k: v for k, v in metrics.items() if not k.startswith((PREFIX, CONFLICT)) or k in shown}
