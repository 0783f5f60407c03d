"""``opd.train`` and ``opd.evaluate``: what the command line calls, and what Python users call."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.build import evaluation
from opd.config import MAY_CHANGE, BaseRun, PromptsConfig, RunConfig
from opd.config import read as run_file
from opd.data.tasks import TASKS
from opd.errors import CheckpointError, ConfigError
from opd.evaluation.metrics import Metrics
from opd.loop import Loop
from opd.models.language import LanguageModel
from opd.output.run_folder import is_empty, locked, write_json
from opd.output.run_log import RunLog, open_sinks
from opd.parts import Objects, gather
from opd.prepare import Prepared, prepare
from opd.types import Prompt

GIVEN = "given from Python"
"""Stands in a run file for a part that was given as an object."""


@dataclass(frozen=True)
class Result:
    """What a run came to; ``result.json`` holds the same.

    Attributes:
        out: folder with the model, ``metrics.jsonl`` and ``result.json``.
        before, after, best: figures by name at the start, of the weights in ``out``, and at the best evaluation.
        steps: optimizer steps made. tokens: the student's own, rolled out in steps.
        seconds: time in steps, and in what was made before the first.
        stopped_by: the guard that stopped the run, or None.
        events: what guards saw and what was done about it: step, kind, text.
    """

    out: Path
    before: Metrics
    after: Metrics
    best: Metrics
    steps: int
    tokens: int
    seconds: float
    stopped_by: str | None
    events: list[dict[str, Any]]


def train(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    student: Any = None,
    teacher: Any = None,
    prompts: Sequence[str | Mapping[str, Any] | Prompt] | None = None,
    task: Any = None,
    resume: bool = False,
    displays: Sequence[Any] = (),
) -> Result:
    """Train a student by a recipe, a run file or a mapping.

    Args:
        source: ``"hint"``, ``"my.yaml"`` or ``{"student": ...}``.
        overrides: ``{"optimizer.steps": 50}`` or ``["optimizer.steps=50"]``.
        student: (model, tokenizer), a ``LanguageModel`` or a diffusers pipeline instead of the run file's path; its
            weights are trained in place.
        teacher: the same instead of ``teacher.model``.
        prompts: strings, mappings with ``prompt`` or ``messages``, or ``Prompt`` objects.
        task: a ``Task`` or ``PictureTask`` that checks answers, for prompts given as objects.
        resume: go on from the newest checkpoint in ``out``; from the start if there is none.
        displays: objects with ``step``, ``evaluation`` and ``event`` methods that want to be told.

    Returns:
        The figures before and after.

    Raises:
        OpdError: the run cannot be started or has nothing to train on; one sentence says why.
    """
    config = run_file.read(source, _with_objects(overrides, student, teacher, prompts, task))
    out = Path(config.out)
    if isinstance(config, RunConfig):
        student, teacher = _pair(student), _pair(teacher)
    objects = Objects(student=student, teacher=teacher, prompts=prompts, task=task)
    with ExitStack() as held:
        existed = out.is_dir()
        if existed:
            _check_ours(out)
            held.enter_context(locked(out))
        _claim(out, config, resume=resume)
        prepared = prepare(config, objects)
        if not existed:  # what is refused leaves no folder behind
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(out))
            _claim(out, config, resume=resume)
        return _run(prepared, displays)


def examine(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str] = ()) -> Iterator[str]:
    """Look at a run before it costs anything: roll out a few prompts and let the teacher score them.

    Nothing is trained and nothing is written.

    Yields:
        A line per finding.

    Raises:
        OpdError: the run cannot work; the same sentence ``opd train`` would give.
    """
    yield from prepare(run_file.read(source, overrides), Objects()).findings()
    yield "ready to train"


def _run(prepared: Prepared, displays: Sequence[Any]) -> Result:
    """Train in a folder that is ours."""
    config, out = prepared.config, Path(prepared.config.out)
    write_json(out / "run.json", config.model_dump(mode="json"))
    log = RunLog(out / "metrics.jsonl", open_sinks(config.log, out, out.name, config.model_dump(mode="json")), displays)
    started = time.perf_counter()
    loop = prepared.assemble(log)
    loop.state.seconds = time.perf_counter() - started  # what is made before the first step is not free
    recorder = prepared.recorder(loop)
    if recorder:
        displays = log.displays = [recorder, *displays]
        log.observers = [recorder]
    loop.checkpoints.restore(loop)
    log.rewind(loop.state.step if loop.state.before or loop.state.step else -1)
    for display in displays:
        display.start(loop)
    try:
        loop.run()
        result = _finish(loop, prepared)
        if recorder:
            recorder.finish()
        return result
    finally:
        log.close()
        for display in displays:
            display.stop()


def evaluate(
    model: str | LanguageModel | tuple[Any, Any],
    prompts: str | Mapping[str, Any],
    *,
    split: str = "test",
    samples: int = 0,
    max_new_tokens: int = 256,
    max_turns: int = 8,
    device: str = "auto",
) -> Metrics:
    """Measure a model on prompts with checkable answers.

    Args:
        model: path, bundled name, hub id or (model, tokenizer).
        prompts: a task's name, a JSONL path, a dataset id, or a mapping as in the run file.
        split: of the task or dataset, where ``prompts`` is a string.
        samples: also sample so many answers per prompt and report avg@n.

    Returns:
        Figures by name: ``accuracy``, ``invalid_call_rate``, ``length``, ``truncation_rate``, ``avg@n``.

    Raises:
        OpdError: the model or the prompts cannot be used.
    """
    if isinstance(prompts, str):
        is_task = prompts in TASKS or ":" in prompts
        prompts = {"task": prompts, "split": split} if is_task else {**PromptsConfig.source(prompts), "split": split}
    named = isinstance(model, str)
    config = run_file.read(
        {
            "student": model if named else GIVEN,
            "prompts": prompts,
            "eval": {"prompts": prompts, "samples": samples, "divergence": False},
            "teacher": {"weights": "ema"},
            "rollout": {"batch": 1, "max_new_tokens": max_new_tokens, "max_turns": max_turns},  # however few prompts
            "device": device,
            "out": "nothing is written",
        }
    )
    assert isinstance(config, RunConfig)
    measure = evaluation(gather(config, Objects(student=None if isinstance(model, str) else _pair(model))), None)
    assert measure is not None
    return measure()


def _with_objects(overrides: Any, student: Any, teacher: Any, prompts: Any, task: Any) -> list[str] | dict[str, Any]:
    """Overrides, with the keys that given objects stand in for."""
    if not any(o is not None for o in (student, teacher, prompts, task)):
        given: list[str] | dict[str, Any] = overrides
        return given
    changed: dict[str, Any] = {}
    if student is not None:
        changed["student"] = GIVEN
    if teacher is not None:
        changed |= {"teacher.weights": "model", "teacher.model": GIVEN}
    if prompts is not None:
        changed["prompts"] = {"path": GIVEN}
    given = dict(overrides) if isinstance(overrides, Mapping) else dict(run_file.split(o) for o in overrides)
    return changed | given


def _pair(model: LanguageModel | tuple[Any, Any] | None) -> LanguageModel | None:
    if model is None or isinstance(model, LanguageModel):
        return model
    if not (isinstance(model, tuple) and len(model) == 2):
        raise ConfigError("a model given from Python is a pair (model, tokenizer)")
    return LanguageModel(model[0], model[1], getattr(model[0].config, "_name_or_path", "") or GIVEN)


def _check_ours(out: Path) -> None:
    """Refuse a folder that holds something else: nothing is overwritten."""
    if not (out / "run.json").exists() and not is_empty(out):
        raise ConfigError(f"out: '{out}' exists and is no run of opd; choose another folder")


def _claim(out: Path, config: BaseRun, *, resume: bool) -> None:
    """Refuse a folder that holds something else, another run, or a run that is not to be gone on with."""
    _check_ours(out)
    saved = out / "run.json"
    if not saved.exists():
        return
    if not resume:
        raise ConfigError(f"out: '{out}' already holds a run; go on with --resume, or choose another out")
    old, new = json.loads(saved.read_text()), config.model_dump(mode="json")
    changed = [key for key in new if key not in MAY_CHANGE and old.get(key) != new[key]]
    if changed:
        raise CheckpointError(
            f"'{out}' was started with another '{changed[0]}' ({old.get(changed[0])}, now {new[changed[0]]}); resume "
            "with the same run file or choose another out"
        )


def _finish(loop: Loop, prepared: Prepared) -> Result:
    """Leave ``out`` as an ordinary model folder: the last weights, or the best if the run has ever collapsed."""
    state, out = loop.state, Path(prepared.config.out)
    if (state.stopped_by not in (None, "idle") or state.rollbacks) and state.best:
        loop.checkpoints.load_best(loop.student)
        state = dataclasses.replace(state, after=state.best)
    result = Result(
        out=out,
        before=state.before,
        after=state.after,
        best=state.best,
        steps=state.step,
        tokens=state.tokens,
        seconds=state.seconds,
        stopped_by=state.stopped_by,
        events=state.events,
    )
    loop.student.save(out)
    (out / "README.md").write_text(prepared.card(result))
    figures = {k: v for k, v in dataclasses.asdict(result).items() if k != "out"}
    write_json(out / "result.json", figures)
    return result
