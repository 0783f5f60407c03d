"""``opd.train`` and ``opd.evaluate``: what the command line calls, and what Python users call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from opd.axes.base import GIVEN, Objects
from opd.config import read as run_file
from opd.config.diffusion import DiffusionConfig
from opd.config.own_model import settings_taken
from opd.config.run import PromptsConfig, RunConfig
from opd.config.tasks import TASKS
from opd.data.rows import Note, ignore
from opd.errors import ConfigError
from opd.evaluation.limits import check_limits
from opd.language.measure import measure_model
from opd.language.run import LanguageRun
from opd.models.language import LanguageModel, device_named
from opd.models.loading import accept
from opd.models.loading import load as load_language_model
from opd.output.callbacks import Callback, check_callbacks
from opd.output.faults import as_sentences
from opd.output.result import Result
from opd.running import Run, start
from opd.servers.advice import commands
from opd.types import Engine, HintAuthor, Metrics, Objective, Prompt, RolloutSource, Teacher, View

if TYPE_CHECKING:
    from opd.losses import Divergence


Dtype = Literal["float32", "bfloat16", "float16"]
"""Dtype of a named model's weights."""


def train(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    student: Any = None,
    teacher: Any = None,
    prompts: Iterable[str | Mapping[str, Any] | Prompt] | None = None,
    eval_prompts: Iterable[str | Mapping[str, Any] | Prompt] | None = None,
    task: Any = None,
    reward: Any = None,
    sampler: RolloutSource | None = None,
    engine: Engine | None = None,
    view: View | None = None,
    author: HintAuthor | None = None,
    signal: tuple[Teacher, Objective] | None = None,
    divergence: Divergence | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback | Any] = (),
) -> Result:
    """Train a student by a recipe, a run file or a mapping.

    Every object replaces the run file's value on its axis. A user's own class can also be named in the run file, as
    ``package.module:Name``.

    Args:
        source: ``"hint"``, ``"my.yaml"`` or ``{"student": ...}``.
        overrides: ``{"optimizer.steps": 50}`` or ``["optimizer.steps=50"]``.
        student: (model, tokenizer), a ``LanguageModel`` or a diffusers pipeline; its weights are trained in place. A
            language model in 16 bits is turned into float32 in place, and ``out`` is written in the dtype it came in.
        teacher: the same instead of ``teacher.model``.
        prompts: strings, mappings with ``prompt`` or ``messages``, ``Prompt`` objects, or a ``datasets`` object. The
            keys of ``prompts`` such as ``prompts.columns`` hold for them too.
        eval_prompts: held-out prompts, likewise.
        task: a ``Task`` or ``ImageTask`` that checks answers. Without prompts a recipe takes the task's own: those of
            ``train`` and, for evaluation, those of ``test`` if there are any.
        reward: ``function(prompt, completion, row)``, which returns a number or None, instead of ``prompts.reward``; or
            a list of functions and pairs (function, weight).
        sampler: makes the rollouts, instead of ``rollout.source``.
        engine: generates the student's tokens, instead of ``rollout.engine``.
        view: turns rollouts into segments, instead of ``teacher.view``.
        author: writes hints, for a hint view.
        signal: the teacher and the objective, instead of ``loss.signal``.
        divergence: a ``Divergence``, instead of ``loss.divergence``.
        resume: continue from the newest checkpoint in ``out``; from the start if there is none.
        callbacks: follow the run; objects with any of the methods of ``Callback``.

    Returns:
        Metrics before and after.

    Raises:
        OpdError: the run cannot be started or has nothing to train on; one sentence says why.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, a ``KeyboardInterrupt``: the step was finished and is in a checkpoint.
    """
    objects = Objects(
        student=student,
        teacher=teacher,
        prompts=prompts,
        eval_prompts=eval_prompts,
        task=task,
        reward=reward,
        sampler=sampler,
        engine=engine,
        view=view,
        author=author,
        signal=signal,
        divergence=divergence,
    )
    objects.check()
    if source in run_file.recipe_names() and not run_file.PROMPT_SOURCES & run_file.pairs_of(overrides).keys():
        objects = objects.with_own_prompts(evaluated="eval.prompts" not in run_file.pairs_of(overrides))
    check_callbacks(callbacks)
    with as_sentences():
        config = run_file.read(source, _with_objects(overrides, objects), starts_from=_loaded_from(student))
        return start(config, lambda: load(config, objects), resume=resume, callbacks=callbacks)


def load(config: RunConfig | DiffusionConfig, objects: Objects) -> Run:
    """Load everything a run names, with the code of its family."""
    if isinstance(config, DiffusionConfig):
        from opd.diffusion.run import DenoisingRun

        return DenoisingRun.load(config, objects)
    models = {"student": objects.student, "teacher": objects.teacher}
    given: dict[str, Any] = {name: _as_language_model(model) for name, model in models.items() if model is not None}
    return LanguageRun.load(config, dataclasses.replace(objects, **given))


def examine(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str] = ()) -> Iterator[str]:
    """Check a run before it costs anything: roll out a few prompts and score them.

    Nothing is trained and nothing is written.

    Yields:
        A line per finding.

    Raises:
        OpdError: the run cannot work; the sentence is that of ``opd train``.
    """
    config = run_file.read(source, overrides)
    yield from commands(config)
    run = load(config, Objects())
    if taken := settings_taken(run.config):
        yield f"settings  {taken}"
    yield from run.findings()
    yield "ready to train"


@as_sentences()
def evaluate(
    model: str | LanguageModel | tuple[Any, Any],
    prompts: str | Mapping[str, Any],
    *,
    split: str | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    samples: int = 0,
    max_new_tokens: int = 256,
    max_turns: int = 8,
    limit: int | None = None,
    temperature: float = 0.0,
    dtype: Dtype = "float32",
    device: str = "auto",
    note: Note = ignore,
) -> Metrics:
    """Measure a model on prompts with checkable answers.

    Args:
        model: path, bundled name, hub id or (model, tokenizer).
        prompts: a task's name, a file's path, a dataset's folder or id, or a mapping as in the run file.
        split: of the task or dataset; by default ``test`` or ``validation``, where there is one.
        settings: keys of the run file's ``prompts``: ``["limit=100"]`` or ``{"columns.prompt": "question"}``.
        samples: also sample n answers per prompt and report avg@n.
        max_new_tokens: most tokens after the prompt.
        max_turns: most assistant turns, if there is an environment.
        limit: measure the first n prompts.
        temperature: of the measured answers; 0 takes the most likely token.
        dtype, device: of the weights, for a model that is named.
        note: takes sentences about prompts that were left out or changed.

    Returns:
        Metrics: ``accuracy``, ``invalid_call_rate``, ``length``, ``truncation_rate``, ``avg@n``.

    Raises:
        OpdError: the model or the prompts cannot be used.
    """
    if dtype not in get_args(Dtype):
        raise ConfigError(f"dtype: there is no '{dtype}'. Fix: choose {', '.join(get_args(Dtype))}")
    counts = {"samples": samples, "max_new_tokens": max_new_tokens, "max_turns": max_turns}
    check_limits(**counts, limit=limit, temperature=temperature)
    if not isinstance(prompts, str | Mapping):
        raise ConfigError(f"prompts: {prompts!r} names none. Fix: give a task's name, a file's path or a mapping")
    if isinstance(prompts, str):
        is_task = prompts in TASKS or ":" in prompts
        named = {"task": prompts} if is_task else PromptsConfig.source(prompts)
        prompts = named if split is None else {**named, "split": split}
    tree = {"prompts": dict(prompts) if limit is None else {**prompts, "limit": limit}}
    for key, value in run_file.pairs_of(settings).items():
        run_file.set_key(tree, f"prompts.{key}", value)
    config = run_file.validate(PromptsConfig, tree["prompts"], at="prompts")
    source = model if isinstance(model, str) else _as_language_model(model)
    return measure_model(
        source,
        config,
        samples=samples,
        max_new_tokens=max_new_tokens,
        max_turns=max_turns,
        device=device,
        dtype=dtype,
        temperature=temperature,
        note=note,
    )


def load_model(model: str | tuple[Any, Any], *, dtype: Dtype = "float32", device: str = "auto") -> LanguageModel:
    """Load a model with its tokenizer and inspect it as every run does, for a loop of your own.

    Args:
        model: path, bundled name or hub id, or (model, tokenizer).
        dtype, device: of the weights, for a model that is named.

    Returns:
        The model, in evaluation mode if it was named: hidden states, output head, end tokens.

    Raises:
        OpdError: it cannot be loaded, lacks tensors, or its cached decoding differs from its full forward pass.
    """
    if isinstance(model, str):
        return load_language_model(model, key="model", dtype=dtype, device=device_named(device))
    return accept(_as_language_model(model), key="model")


def _with_objects(overrides: Any, objects: Objects) -> list[str] | dict[str, Any]:
    """Overrides, with the keys that given objects stand in for."""
    standing = objects.keys()
    if not standing:
        unchanged: list[str] | dict[str, Any] = overrides
        return unchanged
    return standing | run_file.pairs_of(overrides)


def _loaded_from(student: Any) -> str | None:
    """The folder or id that a student given from Python was loaded from; None without such a student."""
    model = student[0] if isinstance(student, tuple) and student else getattr(student, "model", student)
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return None if student is None else str(name or GIVEN)


def _as_language_model(model: LanguageModel | tuple[Any, Any]) -> LanguageModel:
    """A model given from Python, of which a pair gets its end tokens and head.

    Raises:
        ConfigError: it is neither a ``LanguageModel`` nor a pair (model, tokenizer).
    """
    if isinstance(model, LanguageModel):
        return model
    pair = model if isinstance(model, tuple) and len(model) == 2 else ()
    whole, tokenizer = pair or (None, None)
    if inner := getattr(whole, "_orig_mod", getattr(whole, "module", None)):  # of torch.compile, or of a parallel model
        raise ConfigError(
            f"a model given from Python is a transformers model, and this one is inside {type(whole).__name__}. Fix: "
            f"give the {type(inner).__name__} itself; compile=true compiles it"
        )
    if not (hasattr(whole, "config") and hasattr(tokenizer, "get_vocab")):
        got = ", ".join(type(part).__name__ for part in pair or (model,))
        fix = "give processor.tokenizer" if hasattr(tokenizer, "tokenizer") else "give the pair"
        raise ConfigError(
            f"a model given from Python is a pair (model, tokenizer) (got {got}). Fix: {fix}, or name a folder or hub "
            "id as the override student or teacher.model"
        )
    return LanguageModel(whole, tokenizer, getattr(whole.config, "_name_or_path", "") or GIVEN)
