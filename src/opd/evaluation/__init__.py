"""Metrics of rollouts and models, diagnostics, and the decisions that follow from them."""
