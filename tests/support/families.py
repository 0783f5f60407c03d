"""Run files whose family a test knows."""

from __future__ import annotations

from typing import Any

from opd.config.diffusion import DiffusionConfig
from opd.config.read import read
from opd.config.run import RunConfig


def read_language(source: Any, overrides: Any = ()) -> RunConfig:
    """``read`` of a language run."""
    config = read(source, overrides)
    assert isinstance(config, RunConfig)
    return config


def read_denoising(source: Any, overrides: Any = ()) -> DiffusionConfig:
    """``read`` of a denoising run."""
    config = read(source, overrides)
    assert isinstance(config, DiffusionConfig)
    return config
