"""Engines: generation of tokens from token ids."""
