"""Prompts from tasks, files, Hugging Face datasets and Python lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from opd.config.run import FILES, PromptsConfig
from opd.config.tasks import TASKS
from opd.data.answers import EachItsOwn
from opd.data.files import read_rows, without_nulls
from opd.data.rows import Note, check_prompt, from_rows, ignore
from opd.data.tasks import get_task
from opd.data.tool_task import ToolTask
from opd.errors import DataError, near
from opd.types import Prompt, Task

TRAIN = ("train",)
"""Splits of training prompts, if none is named."""

HELD_OUT = ("test", "validation", "train")
"""Splits of held-out prompts, if none is named: the first that the source has."""


MOST_FILES = 20_000
"""Entries of a folder that is a dataset; a home folder or ``/tmp`` has more, and would be searched for minutes."""

Judged = Callable[[PromptsConfig, Task | None], Task | None]
"""The task of a source with its rewards, from the source's settings and its own task."""


def load_prompts(
    config: PromptsConfig,
    given: Iterable[Any] | None = None,
    *,
    key: str,
    has_template: bool,
    kwargs: Mapping[str, Any] | None = None,
    splits: Sequence[str] = TRAIN,
    note: Note = ignore,
    judged: Judged = lambda _, task: task,
) -> tuple[list[Prompt], Task | None]:
    """Prompts, and the task that checks their answers. No two prompts have the same id.

    Args:
        config: the source, and its settings.
        given: ``Prompt`` objects, strings, rows or a dataset: from Python, instead of the source.
        key: the run file's key, for error messages.
        has_template: whether the student's tokenizer has a chat template; then a plain string becomes a user message.
        kwargs: arguments of the chat template that hold where the source or the row does not give them.
        splits: the split to take if the source names none: the first of these that it has.
        note: reports what was left out or changed.
        judged: makes the task with a source's own rewards; by default the task as it is.

    Returns:
        The prompts in the source's order, and the task; None if no prompt has an answer.

    Raises:
        DataError: the file or dataset is missing, empty, or a row is broken.
    """
    kwargs = {**(kwargs or {}), **config.chat_template_kwargs}
    if config.mix and given is None:
        loaded = [
            load_prompts(
                source if source.reward is not None else source.model_copy(update={"reward": config.reward}),
                key=f"{key}.mix.{number}",
                has_template=has_template,
                kwargs=kwargs,
                splits=splits,
                note=note,
                judged=judged,
            )
            for number, source in enumerate(config.mix)
        ]
        return _mixed(loaded)
    if config.task and given is None:
        task: Task | None = get_task(config.task, key=f"{key}.task")
        assert task
        made = islice(task.prompts(config.split or splits[0]), config.limit)
        prompts = [check_prompt(prompt, f"{key}.task: prompt {number}") for number, prompt in enumerate(made, 1)]
    else:
        rows = _rows(config, given, splits, key=key, note=note)
        prompts, task = _from_rows(rows, config, key=key, has_template=has_template, note=note)
    prompts = _with_settings(prompts, config, kwargs, key=key, note=note)
    prompts, task = _with_tools(prompts, task, config, key=key)
    return prompts, judged(config, task)


def _rows(
    config: PromptsConfig, given: Iterable[Any] | None, splits: Sequence[str], *, key: str, note: Note
) -> Iterable[Any]:
    """The rows of a file, a dataset, or of what was given from Python."""
    if given is None:
        return read_rows(config.path, key=key) if config.path else _dataset(config, splits, key=key, note=note)
    if isinstance(given, Mapping):  # a DatasetDict
        given = given[_split(list(given), config, splits, key=key, source="the dataset", note=note)]
    tables = type(given).__module__.partition(".")[0] == "datasets"
    return list(islice(map(without_nulls, given) if tables else given, config.limit))


def _from_rows(
    rows: Iterable[Any], config: PromptsConfig, *, key: str, has_template: bool, note: Note
) -> tuple[list[Prompt], Task | None]:
    chat = has_template if config.chat is None else config.chat
    return from_rows(rows, key=key, chat=chat, limit=config.limit, columns=config.columns, note=note)


def _with_settings(
    prompts: Iterable[Prompt], config: PromptsConfig, kwargs: Mapping[str, Any], *, key: str, note: Note
) -> list[Prompt]:
    """Prompts with their source's domain and template arguments, and with ids of their own."""
    changed = [
        replace(
            prompt,
            domain=config.domain or prompt.domain,
            chat_template_kwargs={**kwargs, **prompt.chat_template_kwargs},
        )
        if config.domain or kwargs
        else prompt
        for prompt in prompts
    ]
    return _distinct(changed, key=key, note=note)


def _with_tools(
    prompts: list[Prompt], task: Task | None, config: PromptsConfig, *, key: str
) -> tuple[list[Prompt], Task | None]:
    """Prompts with their tools and the environment that runs them, if the source names tools."""
    if config.tools is None:
        return prompts, task
    environment = ToolTask.make(config.tools, key=f"{key}.tools")
    return [environment.prepared(prompt, key=key) for prompt in prompts], environment


def _distinct(prompts: Sequence[Prompt], *, key: str, note: Note) -> list[Prompt]:
    """Prompts with ids of their own: the second prompt with the id x gets x#2, so that two rows are never one group."""
    taken = {prompt.id for prompt in prompts}
    if len(taken) == len(prompts):
        return list(prompts)
    times: dict[str, int] = {}
    distinct = []
    for prompt in prompts:
        name = prompt.id
        if prompt.id in times:
            while name in taken:
                times[prompt.id] += 1
                name = f"{prompt.id}#{times[prompt.id]}"
            taken.add(name)
        times.setdefault(prompt.id, 1)
        distinct.append(prompt if name == prompt.id else replace(prompt, id=name))
    repeated = [p.id for p, before in zip(distinct, prompts, strict=True) if p.id != before.id]
    note(f"{key}: {len(repeated)} prompts repeat an id and get ids of their own, such as '{repeated[0]}'")
    return distinct


def _mixed(loaded: Sequence[tuple[list[Prompt], Task | None]]) -> tuple[list[Prompt], Task | None]:
    """One prompt of each source in turn; ids get the source's number if they are not unique."""
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


def _split(
    names: Sequence[str], config: PromptsConfig, splits: Sequence[str], *, key: str, source: str, note: Note
) -> str:
    """The split to take of those that a source has.

    Raises:
        DataError: it lacks the named split, or has none of the usual ones.
    """
    wanted = (config.split,) if config.split else splits
    found = next((split for split in wanted if split in names), None)
    if found is None:
        raise DataError(
            f"{key}.split: {source} has no split {' or '.join(wanted)} (it has {', '.join(names) or 'none'}). Fix: "
            "name one of these"
        )
    if len(wanted) > 1 and len(names) > 1:
        note(f"{key}: split '{found}' of {source}")
    return found


def _dataset(config: PromptsConfig, splits: Sequence[str], *, key: str, note: Note) -> Iterable[Mapping[str, Any]]:
    import datasets  # takes a second to import, and most runs do not need it

    assert config.dataset is not None
    name, source = str(Path(config.dataset).expanduser()), f"dataset '{config.dataset}'"
    _check_folder(Path(name), config, key)

    def choose(names: Sequence[str]) -> str:
        return _split(names, config, splits, key=key, source=source, note=note)

    try:
        if any((Path(name) / file).exists() for file in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(name)
            rows = loaded[choose(list(loaded))] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            known = config.split or (splits[0] if len(splits) == 1 else None)
            split = known or choose(datasets.get_dataset_split_names(name, config.subset))
            try:
                rows = datasets.load_dataset(name, config.subset, split=split)
            except ValueError:
                choose(datasets.get_dataset_split_names(name, config.subset))  # the sentence about a missing split
                raise
    except DataError:
        raise
    except Exception as error:  # the library raises whatever its readers and the network raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        fix = (
            f"write {key}.task={config.dataset}, if you mean the bundled task"
            if config.dataset in TASKS
            else "check its name, subset and split, or give a file"
        )
        meant = near(config.dataset, list(TASKS))
        raise DataError(f"{key}: cannot load {source} ({reason}){meant} Fix: {fix}") from error
    return map(without_nulls, rows)


def _check_folder(path: Path, config: PromptsConfig, key: str) -> None:
    """Refuse a folder without data, and a file that is no data, before they are looked up on the hub.

    Raises:
        DataError: the path is one of these.
    """
    if path.is_file():
        raise DataError(
            f"{key}: '{config.dataset}' is a file of no known kind. Fix: give a file in {', '.join(FILES)}, or a folder"
        )
    if config.dataset and config.dataset.startswith(("/", "./", "../", "~")) and not path.exists():
        raise DataError(f"{key}: there is no folder '{config.dataset}'. Fix: check the path")
    readable = (*FILES, *(f"{end}.gz" for end in FILES), ".arrow")
    if not path.is_dir():
        return
    files = list(islice(path.rglob("*"), MOST_FILES + 1))
    if len(files) > MOST_FILES:
        raise DataError(
            f"{key}: folder '{config.dataset}' has more than {MOST_FILES:,} files and folders, so it is no dataset. "
            "Fix: name the folder or the file of the data"
        )
    if not any(file.name.lower().endswith(readable) for file in files):
        raise DataError(
            f"{key}: folder '{config.dataset}' has no data. Fix: put files in {', '.join(FILES)} there, or name "
            "another folder"
        )
