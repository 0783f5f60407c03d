"""Prompts for images, from a task, a JSONL file or a dataset; a prompt may have an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from opd.axes.base import import_named
from opd.config.run import PromptsConfig
from opd.config.tasks import IMAGE_TASKS
from opd.data.prompts import TRAIN, in_turn, load_prompts, with_own_ids
from opd.data.rows import Note, ignore
from opd.diffusion.types import ImageTask
from opd.errors import ConfigError, near
from opd.types import Prompt

METHODS = ("prompts", "right", "reward", "distance")
"""The methods of an ``ImageTask``."""


def load_image_prompts(
    config: PromptsConfig,
    given: Iterable[Any] | None = None,
    *,
    key: str,
    splits: Sequence[str] = TRAIN,
    note: Note = ignore,
) -> tuple[list[Prompt], ImageTask | None]:
    """Load prompts, and the task that judges their images; None if nothing does.

    A path in an ``image`` column is relative to its JSONL file.

    Args:
        given: rows or prompts from Python, instead of the source.

    Raises:
        DataError: the file or dataset is missing, empty, or a row is broken.
        ConfigError: there is no such task, or a mix has several tasks.
    """
    if config.mix and given is None:
        loaded = [
            load_image_prompts(c, key=f"{key}.mix.{n}", splits=splits, note=note) for n, c in enumerate(config.mix)
        ]
        tasks = {id(task): task for _, task in loaded if task}
        if len({type(task) for task in tasks.values()}) > 1:
            raise ConfigError(f"{key}.mix: one task judges the images of a run (got {len(tasks)}). Fix: name one task")
        sources = with_own_ids([prompts for prompts, _ in loaded])  # prompts with the same id form one group
        return in_turn(sources), next(iter(tasks.values()), None)
    if config.task and given is None:
        task = image_task(config.task, key=f"{key}.task")
        prompts: Sequence[Prompt] = task.prompts(config.split or splits[0])[: config.limit]
    else:
        task = None
        prompts, _ = load_prompts(config, given, key=key, has_template=False, splits=splits, note=note)
        prompts = [_beside(prompt, config.path if given is None else None) for prompt in prompts]
    return [replace(p, domain=config.domain) if config.domain else p for p in prompts], task


def image_task(name: str, *, key: str) -> ImageTask:
    """The task of a name: a built-in one, or ``package.module:Name``.

    Raises:
        ConfigError: there is no such task, or it lacks a method.
    """
    module, colon, attribute = IMAGE_TASKS.get(name, name).partition(":")
    if not colon:
        raise ConfigError(
            f"{key}: there is no task '{name}' for images{near(name, list(IMAGE_TASKS))} Fix: give "
            f"{', '.join(IMAGE_TASKS)} or package.module:Name"
        )
    found = import_named(f"{module}:{attribute}", key=key)
    task = found() if isinstance(found, type) else found
    missing = [method for method in METHODS if not callable(getattr(task, method, None))]
    if missing:
        raise ConfigError(
            f"{key}: '{name}' has no {' and no '.join(missing)}. Fix: a task for images has {', '.join(METHODS)}"
        )
    return cast("ImageTask", task)


def _beside(prompt: Prompt, path: str | None) -> Prompt:
    image = prompt.data.get("image")
    if path is None or not isinstance(image, str) or Path(image).is_absolute():
        return prompt
    return replace(prompt, data={**prompt.data, "image": str(Path(path).parent / image)})
