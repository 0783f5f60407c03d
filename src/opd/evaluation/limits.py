"""Bounds of the arguments of ``opd.evaluate``. Nothing here imports torch."""

from __future__ import annotations

import math

from opd.errors import ConfigError

LIMITS = {
    "samples": (0, 100_000),
    "max_new_tokens": (1, 10_000_000),
    "max_turns": (1, 1_000_000),
    "limit": (1, math.inf),
    "temperature": (0, math.inf),
}


def check_limits(**values: float | None) -> None:
    """Refuse a value that is too small, or more than any memory holds; None is left out.

    Raises:
        ConfigError: the sentence names the argument and its bound.
    """
    for name, value in values.items():
        least, most = LIMITS[name]
        if value is not None and not least <= value <= most:
            low = value < least
            bound = f"at least {least} is needed" if low else f"at most {most:,} are possible"
            raise ConfigError(f"{name}: {bound} (got {value}). Fix: {'raise' if low else 'lower'} it")
