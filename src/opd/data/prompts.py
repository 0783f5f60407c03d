"""Prompts from tasks, JSONL files and Hugging Face datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from opd.config.run import PromptsConfig
from opd.data.answers import EachItsOwn
from opd.data.rows import from_rows
from opd.data.tasks import TASKS, get_task
from opd.errors import DataError
from opd.types import Prompt, Task


def load_prompts(
    config: PromptsConfig, *, key: str, has_template: bool, kwargs: Mapping[str, Any] | None = None
) -> tuple[list[Prompt], Task | None]:
    """Prompts, and the task that checks their answers.

    Args:
        config: the source.
        key: the run file's key, for error messages.
        has_template: whether the student's tokenizer has a chat template; then a plain string becomes a user message.
        kwargs: arguments of the chat template that hold where the source or the row does not give them.

    Returns:
        The prompts in the source's order, and the task; None if no prompt has an answer.

    Raises:
        DataError: the file or dataset is missing, empty, or a row is broken.
    """
    kwargs = {**(kwargs or {}), **config.chat_template_kwargs}
    if config.mix:
        return _mixed(config.mix, key=key, has_template=has_template, kwargs=kwargs)
    prompts, task = _one_source(config, key=key, has_template=has_template)
    return [with_settings(p, config, kwargs) for p in prompts], task


def with_settings(prompt: Prompt, config: PromptsConfig, kwargs: Mapping[str, Any]) -> Prompt:
    """A prompt with its source's domain and the template's arguments; its own arguments hold over these."""
    if kwargs:
        prompt = replace(prompt, chat_template_kwargs={**kwargs, **prompt.chat_template_kwargs})
    return replace(prompt, domain=config.domain) if config.domain else prompt


def _one_source(config: PromptsConfig, *, key: str, has_template: bool) -> tuple[list[Prompt], Task | None]:
    if config.task:
        task = get_task(config.task, key=f"{key}.task")
        return list(task.prompts(config.split))[: config.limit], task
    rows = read_jsonl(config.path, key=key) if config.path else _dataset(config, key=key)
    return from_rows(rows, key=key, chat=has_template if config.chat is None else config.chat, limit=config.limit)


def _mixed(
    sources: Sequence[PromptsConfig], *, key: str, has_template: bool, kwargs: Mapping[str, Any]
) -> tuple[list[Prompt], Task | None]:
    """One prompt of each source in turn; ids get the source's number if they are not unique."""
    loaded = [
        load_prompts(c, key=f"{key}.mix.{n}", has_template=has_template, kwargs=kwargs) for n, c in enumerate(sources)
    ]
    named = with_own_ids([prompts for prompts, _ in loaded])
    tasks = {p.id: task for prompts, (_, task) in zip(named, loaded, strict=True) for p in prompts if task}
    return in_turn(named), EachItsOwn(tasks) if tasks else None


def with_own_ids(sources: Sequence[Sequence[Prompt]]) -> list[list[Prompt]]:
    """Prompts of several sources, with the source's number before each id if ids are not unique."""
    ids = [p.id for prompts in sources for p in prompts]
    unique = len(set(ids)) == len(ids)
    return [[p if unique else replace(p, id=f"{n}/{p.id}") for p in prompts] for n, prompts in enumerate(sources)]


def in_turn(sources: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """One prompt of each source in turn, until all are used; a source that ends early is skipped."""
    return [p for turn in zip_longest(*sources) for p in turn if p is not None]


def given_prompts(
    given: Sequence[Any], config: PromptsConfig, *, key: str, chat: bool, kwargs: Mapping[str, Any] | None = None
) -> tuple[list[Prompt], Task | None]:
    """Prompts given from Python: ``Prompt`` objects only, or strings and rows as in ``load_prompts``."""
    kwargs = {**(kwargs or {}), **config.chat_template_kwargs}
    if all(isinstance(p, Prompt) for p in given):
        return [with_settings(p, config, kwargs) for p in given[: config.limit]], None
    rows = [{"prompt": p} if isinstance(p, str) else p for p in given]
    prompts, task = from_rows(rows, key=key, chat=chat, limit=config.limit)
    return [with_settings(p, config, kwargs) for p in prompts], task


def read_jsonl(path: str, *, key: str) -> list[dict[str, Any]]:
    """Rows of a JSONL file.

    Raises:
        DataError: the file is missing, or a line is no JSON object; the sentence names the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{key}: cannot read '{path}' ({reason}). Fix: give the path of a UTF-8 JSONL file") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{key}: line {number} of '{path}' is not JSON ({error.msg}). Fix: correct or delete it"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{key}: line {number} of '{path}' is not an object. Fix: write one with 'prompt' or 'messages'"
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{key}: '{path}' has no rows. Fix: add rows, or give another file")
    return rows


def _dataset(config: PromptsConfig, *, key: str) -> Iterable[Mapping[str, Any]]:
    import datasets  # takes a second to import, and most runs do not need it

    assert config.dataset is not None
    try:
        if (Path(config.dataset) / "state.json").exists() or (Path(config.dataset) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(config.dataset)
            rows = loaded[config.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            rows = datasets.load_dataset(config.dataset, config.subset, split=config.split)
    except Exception as error:  # the library raises whatever its readers and the network raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = (
            f"write {key}.task={config.dataset}, if you mean the bundled task"
            if config.dataset in TASKS
            else ("check its name and split, or give a JSONL file, whose name ends in .jsonl")
        )
        raise DataError(
            f"{key}: cannot load dataset '{config.dataset}', split '{config.split}' ({reason}). Fix: {fix}"
        ) from error
    result: Iterable[Mapping[str, Any]] = rows
    return result
