"""The file that says where along its trajectories a denoising student differs from its teacher. No torch here."""

from __future__ import annotations

STATES = "states.jsonl"
"""In the run's folder; a line is ``{"step": 20, "loss": {"distill": [0.2, 0.1, null]}}``, a mean per state."""
