"""A run file to begin from: a recipe's settings for a model of one's own, with the meaning of each key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from opd.axes.base import AxisValue
from opd.axes.divergence import DivergenceConfig
from opd.config.diffusion import DiffusionConfig
from opd.config.read import read
from opd.config.run import PromptsConfig, RunConfig

WANTED = {"answers": "every row needs an answer", "rewards": "rows need an answer, or a task that rewards answers"}
"""What a recipe wants of its prompts, by the fact's name."""


def starter(name: str) -> str:
    """The run file of a recipe for a model of one's own, as YAML with comments; names in capitals are to be replaced.

    Raises:
        ConfigError: there is no such recipe.
    """
    given: dict[str, Any] = {"student": "STUDENT", "out": "runs/mine"}
    bundled = read(name)
    if bundled.teacher.models:
        given["teacher.models"] = {key: f"TEACHER_{key.upper()}" for key in bundled.teacher.models}
    elif bundled.teacher.model:
        given["teacher.model"] = "TEACHER"
    if bundled.teacher.view.type == "hint":  # hints come from the events of an environment
        given |= {"prompts": {"task": "my_tasks:MyTask"}, "eval.prompts": {"task": "my_tasks:MyTask", "split": "test"}}
    else:
        given |= {"prompts": {"path": "my.jsonl"}, "eval.prompts": {"path": "held_out.jsonl"}}
    config = read(name, given)
    assert config.method
    wants = [words for fact, words in WANTED.items() if fact in {fact for _, fact in config.all_needs()}]
    head = [
        f"# {name}: {config.method.title}. Source: {config.method.source}",
        "# Replace the names in capitals and the files. Check it with: opd doctor FILE",
        *(f"# Prompts: {words}." for words in wants),
    ]
    return "\n".join([*head, *_lines(config, _shown(config))]) + "\n"


def _shown(config: RunConfig | DiffusionConfig) -> set[str]:
    """The keys that stand in the file even at their defaults: those that a reader looks for first."""
    signal = config.loss.signal
    shown = {"loss", "loss.signal", "rollout", "optimizer", "optimizer.lr", "optimizer.steps"}
    if signal.reads_teacher:
        shown |= {"teacher"} | (set() if config.teacher.is_model else {"teacher.weights"})
        shown |= {"loss.divergence"} if getattr(signal, "compares", True) else set()
    return shown | {key for key, value in (config.method.own_model if config.method else {}).items()}


def _lines(config: BaseModel, shown: set[str], at: str = "") -> Iterator[str]:
    """A line per key that is shown or differs from its default, with the first sentence of its description."""
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        is_default = value == field.get_default(call_default_factory=True)
        if (is_default and f"{at}{key}" not in shown) or f"{at}{key}" == "method":
            continue
        comment = f"  # {_first_sentence(field.description)}" if field.description else ""
        whole = not isinstance(value, BaseModel) or isinstance(value, AxisValue | PromptsConfig | DivergenceConfig)
        inner = [] if whole else list(_lines(value, shown, f"{at}{key}."))
        yield f"{key}:{comment}" if inner else f"{key}: {_flow(_plain(value))}{comment}"
        yield from (f"  {line}" for line in inner)


def _plain(value: Any) -> Any:
    """The shortest form of a value that a run file may have."""
    if isinstance(value, AxisValue | DivergenceConfig):
        settings = _changed(value)
        return {"type": value.type, **settings} if settings else value.type
    if isinstance(value, BaseModel):
        return _changed(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _changed(value: BaseModel) -> dict[str, Any]:
    fields = type(value).model_fields
    every = {key: getattr(value, key) for key in fields if key != "type"}
    return {
        key: _plain(inner)
        for key, inner in every.items()
        if inner != fields[key].get_default(call_default_factory=True) or fields[key].is_required()
    }


def _flow(value: Any) -> str:
    """One line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    line = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value, ensure_ascii=False) if "\n" in line else line


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.:;]) |; ", " ".join(text.replace("``", "").split()))[0].rstrip(".:;") + "."
