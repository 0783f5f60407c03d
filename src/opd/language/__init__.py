"""Runs of causal language models."""
