"""Rollout sources."""
