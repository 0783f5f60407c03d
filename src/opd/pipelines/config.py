"""The pipeline's file: every key, its default and what it means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from opd.config import read as run_file
from opd.config.base import Strict
from opd.config.run import PromptsConfig
from opd.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Of a stage: it is a folder's name too, and stands in dotted keys."""

WHOLE = frozenset({"prompts", "models"})
"""For these keys, and for mappings with a ``type``, a nested mapping replaces the run file's value; others are merged."""


class TrainStage(Strict, extra="allow"):
    """Training: a run file, and whatever of its keys this stage changes, dotted or nested."""

    run: str
    """A recipe's name or a run file."""

    def overrides(self) -> dict[str, Any]:
        """The changed keys, dotted; later ones win."""
        flat: dict[str, Any] = {}
        for key, value in (self.model_extra or {}).items():
            for dotted, leaf in _flatten(key, value):
                flat.pop(dotted, None)
                flat[dotted] = leaf
        return flat


class AverageStage(Strict):
    """The weighted mean of several models' weights: the baseline for distillation from several teachers."""

    average: tuple[str, ...] = Field(min_length=2)
    """Models of one architecture."""
    weights: tuple[float, ...] | None = None
    """One per model, 1 in all; by default the same for each."""

    @model_validator(mode="after")
    def _one_each(self) -> AverageStage:
        _check_distinct(self.average)
        if self.weights is None:
            return self
        if len(self.weights) != len(self.average):
            raise ValueError(f"{len(self.average)} models and {len(self.weights)} weights; give one weight per model")
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights add up to {sum(self.weights):g}, and those of an average add up to 1")
        return self


class EvalStage(Strict):
    """Figures of several models on the same prompts, as ``opd eval`` gives them."""

    eval: tuple[str, ...] = Field(min_length=1)
    """Models."""
    prompts: PromptsConfig
    """What they answer."""
    samples: int = Field(0, ge=0)
    """Also sample so many answers per prompt: avg@n."""
    max_new_tokens: int = Field(256, ge=1)
    """The most tokens after a prompt, tool results included."""
    max_turns: int = Field(8, ge=1)
    """The most assistant turns, where there is an environment."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""

    @model_validator(mode="after")
    def _one_row_each(self) -> EvalStage:
        _check_distinct(self.eval)
        return self


class PipelineConfig(Strict):
    """A whole pipeline. ``stage:NAME`` anywhere in a stage's settings is the folder that stage NAME leaves."""

    out: str
    """Folder of the pipeline; each stage has a folder of its name in it."""
    seed: int | None = Field(None, ge=0)
    """Of every stage that names none; by default each run file's own."""
    parallel: int = Field(1, ge=1)
    """Independent stages at a time, each in a process of its own."""
    stages: dict[str, TrainStage | AverageStage | EvalStage] = Field(min_length=1)
    """By name, each one of three kinds: training, averaging, measuring."""


def read(source: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()) -> PipelineConfig:
    """Read a pipeline's file or mapping and apply overrides.

    Args:
        source: ``"my.yaml"`` or a mapping.
        overrides: ``["stages.first.optimizer.steps=5"]`` or the same as a mapping.

    Raises:
        ConfigError: one sentence about the first thing that is wrong.
    """
    where = {"what": "pipeline file", "keys": "out and stages"}
    tree = dict(source) if isinstance(source, Mapping) else run_file.load(Path(source), **where)
    stages = tree.get("stages")
    if not isinstance(stages, Mapping) or not stages:
        raise ConfigError("'stages' has to be a mapping from names to settings, such as first: {run: opd}")
    tree["stages"] = {str(name): _settings(str(name), settings) for name, settings in stages.items()}
    pairs = dict(overrides) if isinstance(overrides, Mapping) else dict(run_file.split(o) for o in overrides)
    for key, value in pairs.items():
        _override(tree, key, value)
    tree["stages"] = {name: _stage(name, settings) for name, settings in tree["stages"].items()}
    return run_file.validate(PipelineConfig, tree)


def _check_distinct(models: Sequence[str]) -> None:
    twice = next((name for name in models if models.count(name) > 1), None)
    if twice:
        raise ValueError(f"'{twice}' stands there twice; name each model once")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is unknown."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"


def _settings(name: str, settings: Any) -> dict[str, Any]:
    if not NAME.fullmatch(name):
        raise ConfigError(f"stages: '{name}' cannot name a folder; use letters, digits, - and _")
    if not isinstance(settings, Mapping):
        raise ConfigError(f"stages.{name} has to be a mapping with run, average or eval, and is {settings!r}")
    return {str(key): value for key, value in settings.items()}


def _override(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; of a training stage the rest stays dotted, as it is an override of its run file."""
    first, _, rest = key.partition(".")
    name, _, inner = rest.partition(".")
    if first != "stages":
        run_file.set_key(tree, key, value)
    elif name not in tree["stages"]:
        raise ConfigError(f"'{key}': there is no stage '{name}'; {nearest(name, tree['stages'])}")
    elif not inner:
        tree["stages"][name] = _settings(name, value)
    elif "run" in tree["stages"][name]:
        tree["stages"][name].pop(inner, None)  # the last word comes last
        tree["stages"][name][inner] = value
    else:
        run_file.set_key(tree["stages"][name], inner, value)


def _stage(name: str, settings: dict[str, Any]) -> TrainStage | AverageStage | EvalStage:
    at = f"stages.{name}"
    if "run" in settings:
        if "out" in settings:
            raise ConfigError(f"{at}.out: a stage's folder is the pipeline's out and its name; leave it out")
        return run_file.validate(TrainStage, settings, at=at)
    if "average" in settings:
        return run_file.validate(AverageStage, settings, at=at)
    if "eval" in settings:
        return run_file.validate(EvalStage, settings, at=at)
    raise ConfigError(f"{at} has none of run (a recipe or run file), average and eval (lists of models); give one")


def _flatten(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and "type" not in value and key.rpartition(".")[2] not in WHOLE:
        for inner, leaf in value.items():
            yield from _flatten(f"{key}.{inner}", leaf)
    else:
        yield key, value
