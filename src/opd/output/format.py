"""The metric table: how each metric is named, printed and compared. Nothing here imports torch.

Terminal, model card, pipeline tables and pages use this table; the pages receive it as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

PREFIX = "teacher/"
"""Prefix of metrics that compare the student with its teacher."""

CONFLICT = "conflict/"
"""Prefix of metrics that compare several teachers with each other."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        label: a short name for pages.
        percent: printed in percent; any other metric has three decimals.
        better: direction of improvement; None if neither direction is better.
    """

    label: str
    percent: bool = False
    better: Literal["higher", "lower"] | None = "higher"


METRICS = {
    "accuracy": Metric("correct answers", percent=True),
    "reward": Metric("mean reward"),
    "rewards": Metric("mean reward of one function"),
    "teacher_reward": Metric("teacher's mean reward"),
    "judge": Metric("verdicts that could not be read", percent=True, better="lower"),
    "avg": Metric("correct answers, sampled", percent=True),
    "teacher_accuracy": Metric("teacher's correct answers", percent=True),
    "gap_recovery": Metric("gap to the teacher closed", percent=True),
    "invalid_call_rate": Metric("invalid tool calls", percent=True, better="lower"),
    "reverse_kl": Metric("reverse KL to the teacher", better="lower"),
    "forward_kl": Metric("forward KL to the teacher", better="lower"),
    "overlap": Metric("likeliest tokens shared", percent=True),
    "overlap_mass": Metric("student's mass on shared tokens", percent=True),
    "entropy_gap": Metric("entropy gap", better="lower"),
    "length": Metric("tokens per answer", better=None),
    "text_loss": Metric("loss on held-out text", better="lower"),
    "distance": Metric("distance to the teacher", better="lower"),
    "frechet": Metric("Fréchet distance", better="lower"),
    "equal_groups": Metric("groups with equal rewards", percent=True, better=None),
    "truncation_rate": Metric("truncated answers", percent=True, better="lower"),
    "repetition_rate": Metric("repetitive answers", percent=True, better="lower"),
}
"""By name without ``teacher/``, ``/DOMAIN`` and ``@N``."""

MAIN = ("accuracy", "reward", "reverse_kl", "text_loss", "distance")
"""Metrics that can judge a run, in order: the first that is measured judges."""

TILES = ("accuracy", "reward", "invalid_call_rate", "reverse_kl", "overlap", "length", "text_loss")
"""Metrics at the top of a page, in order; a page has room for five."""

STEP = ("loss", "accuracy", "reward", "invalid_call_rate", "distill_share", "grad_norm")
"""Metrics of a training step that a line in a terminal has room for, if the run has them."""

HEADLINE_TEACHER = ("overlap@16", "entropy_gap", "reverse_kl")
"""Metrics of the comparison with the teacher that tables include; metrics.jsonl has all of them."""


def base_name(name: str) -> str:
    """``teacher/overlap@16`` becomes ``overlap``, ``accuracy/math`` becomes ``accuracy``."""
    return re.split("[/@]", name.removeprefix(PREFIX).removeprefix(CONFLICT))[0]


def is_percent(name: str) -> bool:
    """Whether a metric is printed in percent: by the table, or as a share by its name."""
    base = base_name(name)
    return METRICS[base].percent if base in METRICS else base.endswith("_share")


def format_value(name: str, value: float) -> str:
    """A metric's value as text: in percent, or with three decimals; a value too small for these as 1e-6."""
    if is_percent(name):
        return f"{value:.1%}"
    return f"{value:.3f}" if value == 0 or not abs(value) < 5e-4 else f"{value:.2g}".replace("e-0", "e-")


def format_line(metrics: Mapping[str, float]) -> str:
    """Names and values on one line."""
    return "  ".join(f"{name} {format_value(name, value)}" for name, value in metrics.items())


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics for tables: all except the details of the comparison with teachers."""
    shown = {PREFIX + name for name in HEADLINE_TEACHER}
    return {k: v for k, v in metrics.items() if not k.startswith((PREFIX, CONFLICT)) or k in shown}


def main_metric(names: Iterable[str]) -> str | None:
    """The first of ``MAIN`` among some names."""
    known = set(names)
    return next((name for name in MAIN if name in known), None)


def metric_table() -> dict[str, Any]:
    """The table as JSON for the pages' scripts."""
    return {"metrics": {name: asdict(metric) for name, metric in METRICS.items()}, "main": MAIN, "tiles": TILES}
