"""Clients of served models."""
