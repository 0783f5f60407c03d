"""The pipeline file: every key, its default and its meaning."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from opd.config import read as run_file
from opd.config.base import Strict
from opd.config.run import PromptsConfig
from opd.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Allowed stage names; a name is also a folder and part of dotted keys."""

WHOLE = frozenset({"prompts", "models"})
"""For these keys, and for mappings with a ``type``, a nested mapping replaces the run file's value."""


class TrainStage(Strict, extra="allow"):
    """A training stage: a run file, and the keys of it that this stage overrides, dotted or nested."""

    run: str
    """Name of a recipe, or path of a run file."""

    def overrides(self) -> dict[str, Any]:
        """The overridden keys, dotted; later ones win."""
        flat: dict[str, Any] = {}
        for key, value in (self.model_extra or {}).items():
            for dotted, leaf in _flatten(key, value):
                flat.pop(dotted, None)
                flat[dotted] = leaf
        return flat


class AverageStage(Strict):
    """The weighted mean of several models' weights."""

    average: tuple[str, ...] = Field(min_length=2)
    """Models of one architecture: folders, ids or ``stage:NAME``."""
    weights: tuple[float, ...] | None = None
    """One weight per model, summing to 1; None for equal weights."""

    @model_validator(mode="after")
    def _one_each(self) -> AverageStage:
        _check_distinct(self.average)
        if self.weights is None:
            return self
        if len(self.weights) != len(self.average):
            raise ValueError(
                f"{len(self.average)} models and {len(self.weights)} weights. Fix: give one weight per model"
            )
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights add up to {sum(self.weights):g}. Fix: make them add up to 1")
        return self


class EvalStage(Strict):
    """Metrics of several models on the same prompts, as ``opd eval`` computes them."""

    eval: tuple[str, ...] = Field(min_length=1)
    """Models to measure: folders, ids or ``stage:NAME``."""
    prompts: PromptsConfig
    """Prompts that the models answer."""
    samples: int = Field(0, ge=0)
    """Number of sampled answers per prompt for avg@n; 0 disables it."""
    max_new_tokens: int = Field(256, ge=1)
    """Largest number of tokens after a prompt, tool results included."""
    max_turns: int = Field(8, ge=1)
    """Largest number of assistant turns in an environment."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto uses a GPU if there is one."""

    @model_validator(mode="after")
    def _one_row_each(self) -> EvalStage:
        _check_distinct(self.eval)
        return self


class PipelineConfig(Strict):
    """A pipeline. ``stage:NAME`` in a stage's settings stands for the model folder of stage NAME."""

    out: str = Field(min_length=1)
    """Folder of the pipeline; each stage writes into a subfolder of its name."""
    seed: int | None = Field(None, ge=0)
    """Seed of every stage that sets none; None keeps each run file's own."""
    parallel: int = Field(1, ge=1)
    """Number of independent stages to run at the same time, each in its own process."""
    stages: dict[str, TrainStage | AverageStage | EvalStage] = Field(min_length=1)
    """Stages by name; each one trains (``run``), averages (``average``) or measures (``eval``)."""

    @field_validator("out")
    @classmethod
    def _own_folder(cls, value: str) -> str:
        """``~`` is the home folder."""
        return os.path.expanduser(value)


def read(source: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()) -> PipelineConfig:
    """Read a pipeline file or mapping and apply overrides.

    Args:
        source: ``"my.yaml"`` or a mapping.
        overrides: ``["stages.first.optimizer.steps=5"]`` or the same as a mapping.

    Raises:
        ConfigError: the first problem, in one sentence.
    """
    where = {"what": "pipeline file", "keys": "out and stages"}
    tree = dict(source) if isinstance(source, Mapping) else run_file.load(Path(source), **where)
    stages = tree.get("stages")
    if not isinstance(stages, Mapping) or not stages:
        raise ConfigError(
            "'stages' has to be a mapping from names to settings. Fix: write for example first: {run: opd}"
        )
    tree["stages"] = {str(name): _settings(str(name), settings) for name, settings in stages.items()}
    pairs = dict(overrides) if isinstance(overrides, Mapping) else dict(run_file.split(o) for o in overrides)
    for key, value in pairs.items():
        _override(tree, key, value)
    tree["stages"] = {name: _stage(name, settings) for name, settings in tree["stages"].items()}
    return run_file.validate(PipelineConfig, tree)


def _check_distinct(models: Sequence[str]) -> None:
    twice = next((name for name in models if models.count(name) > 1), None)
    if twice:
        raise ValueError(f"'{twice}' is named twice. Fix: name each model once")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the most similar name, or all names."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff=0.5)
    return f"; did you mean '{near[0]}'? Fix: correct the name" if near else f". Fix: name one of {', '.join(known)}"


def _settings(name: str, settings: Any) -> dict[str, Any]:
    if not NAME.fullmatch(name):
        raise ConfigError(f"stages: '{name}' cannot name a folder. Fix: use letters, digits, - and _")
    if not isinstance(settings, Mapping):
        raise ConfigError(f"stages.{name}: {settings!r} is not a mapping. Fix: give it run, average or eval")
    return {str(key): value for key, value in settings.items()}


def _override(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. For a training stage the rest stays dotted, because it overrides a key of its run file."""
    first, _, rest = key.partition(".")
    name, _, inner = rest.partition(".")
    if first != "stages":
        run_file.set_key(tree, key, value)
    elif name not in tree["stages"]:
        raise ConfigError(f"{key}: there is no stage '{name}'{nearest(name, tree['stages'])}")
    elif not inner:
        tree["stages"][name] = _settings(name, value)
    elif "run" in tree["stages"][name]:
        tree["stages"][name].pop(inner, None)  # moves the key to the end, so that it wins
        tree["stages"][name][inner] = value
    else:
        run_file.set_key(tree["stages"][name], inner, value)


def _stage(name: str, settings: dict[str, Any]) -> TrainStage | AverageStage | EvalStage:
    at = f"stages.{name}"
    if "run" in settings:
        if "out" in settings:
            raise ConfigError(f"{at}.out: a stage writes to the pipeline's out and its own name. Fix: remove {at}.out")
        return run_file.validate(TrainStage, settings, at=at)
    if "average" in settings:
        return run_file.validate(AverageStage, settings, at=at)
    if "eval" in settings:
        return run_file.validate(EvalStage, settings, at=at)
    raise ConfigError(
        f"{at} has none of run, average and eval. Fix: give run (a recipe or run file) or a list of models"
    )


def _flatten(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and "type" not in value and key.rpartition(".")[2] not in WHOLE:
        for inner, leaf in value.items():
            yield from _flatten(f"{key}.{inner}", leaf)
    else:
        yield key, value
