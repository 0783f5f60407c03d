"""The graph of a pipeline's stages, sorted so that each stage follows its inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from opd.config import read as run_file
from opd.errors import ConfigError, OpdError
from opd.models.bundled import resolve
from opd.pipelines.config import AverageStage, EvalStage, PipelineConfig, TrainStage, nearest

REFERENCE = re.compile(r"stage:(\S+)")

Kind = Literal["train", "average", "eval"]

NAMES = frozenset({"student", "model", "models", "path", "dataset", "file", "average", "eval"})
"""Keys whose values name a model, a file or a folder."""


@dataclass(frozen=True)
class Stage:
    """A stage with complete settings.

    Attributes:
        settings: JSON values, with ``stage:NAME`` for the folder of an input; of a training stage the whole run file
            without ``out``.
        inputs: names of the stages that the settings refer to.
        title: recipe or kind, for tables.
    """

    name: str
    kind: Kind
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    title: str

    @property
    def steps(self) -> int:
        """Number of optimizer steps, or of models to measure."""
        return self.settings["optimizer"]["steps"] if self.kind == "train" else len(self.settings.get("eval", ()))

    def resolved(self, out: Path) -> dict[str, Any]:
        """The settings with every reference replaced by a folder in ``out``."""
        settings: dict[str, Any] = _replace(self.settings, lambda name: str(out / name))
        return settings

    def outside(self) -> Iterator[tuple[str, str]]:
        """Key and value of every model, file or folder outside the pipeline."""
        return ((key, value) for key, value in _named(self.settings) if not REFERENCE.fullmatch(value))


def build(config: PipelineConfig) -> dict[str, Stage]:
    """The stages by name, each after its inputs.

    Raises:
        ConfigError: settings are invalid, a reference names no stage or no model, or stages form a cycle.
    """
    stages = {name: _stage(name, settings, config) for name, settings in config.stages.items()}
    for stage in stages.values():
        _check_references(stage, stages)
    try:
        order = list(TopologicalSorter({s.name: s.inputs for s in stages.values()}).static_order())
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise ConfigError(f"stages: {circle} wait for each other. Fix: remove one of these references") from None
    for name, stage in stages.items():
        if stage.kind == "train" and REFERENCE.fullmatch(stage.settings["student"]):
            model = architecture(stages, stage.settings["student"])
            stages[name] = _stage(name, config.stages[name], config, starts_from=model)
    for stage in stages.values():
        _check_outside(stage)
    return {name: stages[name] for name in order}


def architecture(stages: Mapping[str, Stage], name: str) -> str:
    """The model outside the pipeline that a reference starts from, which has the same architecture."""
    reference = REFERENCE.fullmatch(name)
    if not reference:
        return name
    settings = stages[reference[1]].settings
    return architecture(stages, settings["student"] if "student" in settings else settings["average"][0])


def _stage(
    name: str,
    stage: TrainStage | AverageStage | EvalStage,
    config: PipelineConfig,
    starts_from: str | None = None,
) -> Stage:
    if isinstance(stage, TrainStage):
        overrides = stage.overrides()
        if config.seed is not None:
            overrides = {"seed": config.seed, **overrides}
        at = f"stages.{name}"
        run = run_file.read(stage.run, {**overrides, "out": name}, at=at, starts_from=starts_from)
        settings, kind, title = run.model_dump(mode="json", exclude={"out"}), "train", Path(stage.run).stem
    else:
        settings = stage.model_dump(mode="json")
        kind = title = "average" if isinstance(stage, AverageStage) else "eval"
    inputs = tuple(dict.fromkeys(reference for _, reference in _references(settings)))
    return Stage(name, kind, settings, inputs, title)  # type: ignore[arg-type]


def _check_references(stage: Stage, stages: Mapping[str, Stage]) -> None:
    for key, name in _references(stage.settings):
        at = f"stages.{stage.name}.{key}"
        if name not in stages:
            raise ConfigError(f"{at}: there is no stage '{name}'{nearest(name, stages)}")
        if stages[name].kind == "eval":
            raise ConfigError(
                f"{at}: stage '{name}' measures and leaves no model. Fix: name one that trains or averages"
            )


def _check_outside(stage: Stage) -> None:
    """Refuse a bundled model or path that does not exist, without loading anything."""
    for key, value in stage.outside():
        try:
            path = Path(resolve(value))
        except OpdError as error:
            raise ConfigError(f"stages.{stage.name}.{key}: {error}") from None
        if value.startswith(("/", "./", "../")) and not path.exists():
            raise ConfigError(f"stages.{stage.name}.{key}: there is no '{value}'. Fix: check the path")


def _references(tree: Any) -> Iterator[tuple[str, str]]:
    return ((key, found[1]) for key, _, value in _strings(tree) if (found := REFERENCE.fullmatch(value)))


def _named(tree: Any) -> Iterator[tuple[str, str]]:
    return ((key, value) for key, name, value in _strings(tree) if name in NAMES or key == "eval.text")


def _strings(tree: Any, key: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted key, key that tells the kind of value, and value of every string."""
    if isinstance(tree, str):
        yield key, name, tree
    elif isinstance(tree, Mapping):
        for inner, value in tree.items():
            served = inner == "model" and tree.get("http")
            kind = name if name == "models" else "" if served else inner
            yield from _strings(value, f"{key}.{inner}" if key else inner, kind)
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _strings(value, f"{key}.{number}", name)


def _replace(tree: Any, folder: Callable[[str], str]) -> Any:
    if isinstance(tree, str):
        found = REFERENCE.fullmatch(tree)
        return folder(found[1]) if found else tree
    if isinstance(tree, Mapping):
        return {key: _replace(value, folder) for key, value in tree.items()}
    return [_replace(value, folder) for value in tree] if isinstance(tree, list | tuple) else tree
