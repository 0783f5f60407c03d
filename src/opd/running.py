"""A run in its folder: the folder is claimed, the run is trained, and the model is left there."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from opd.config.diffusion import DiffusionConfig
from opd.config.own_model import settings_taken
from opd.config.run import BaseRun, RunConfig
from opd.distributed import World
from opd.errors import ConfigError
from opd.language.shard import join_ranks
from opd.loop import Loop
from opd.models.language import device_named
from opd.models.sealed import seal_model
from opd.output import provenance
from opd.output.callbacks import Callback, RunStart
from opd.output.claim import claim
from opd.output.result import Result
from opd.output.run_folder import locked, write_json
from opd.output.run_log import RunLog, open_sinks
from opd.training.interrupts import noticed
from opd.types import Prompt


class Run(Protocol):
    """A run that is loaded and checked; ``LanguageRun`` and ``DenoisingRun`` implement it."""

    @property
    def config(self) -> BaseRun:
        """The run file."""
        ...

    @property
    def data(self) -> Mapping[str, Sequence[Prompt]]:
        """The loaded prompts by the run file's key."""
        ...

    @property
    def models(self) -> Mapping[str, str | list[float]]:
        """A label of each loaded model's weights, by the run file's key; a resumed run refuses other weights by it."""
        ...

    def assemble(self, log: RunLog) -> Loop:
        """The loop, ready to run from step 0."""
        ...

    def recorder(self, loop: Loop) -> Any | None:
        """What records the run for the report; None if the run file leaves it out."""
        ...

    def card(self, result: Result) -> str:
        """The README.md of the finished run."""
        ...

    def findings(self) -> Iterator[str]:
        """The lines of `opd doctor`."""
        ...


def start(
    config: RunConfig | DiffusionConfig,
    make: Callable[[], Run],
    *,
    resume: bool = False,
    callbacks: Sequence[Callback | Any] = (),
) -> Result:
    """Train in the run file's folder, which this process locks.

    Args:
        make: loads the run, after the folder is known to be free; a refused run leaves no folder behind.

    Raises:
        OpdError: as for ``train``.
    """
    out, world = Path(config.out), join_ranks(config)
    with world.together(), ExitStack() as held:

        def take() -> bool | None:
            claim(out, config, resume=resume)  # before the lock leaves its file in a folder of something else
            if not out.is_dir():
                return None
            held.enter_context(locked(out))
            return claim(out, config, resume=resume)

        resumed = world.first(take, "out")
        run = make()
        if resumed is None:
            world.first(partial(_make_folder, out), "out")
            resumed = world.first(take, "out")
        return _run(run, callbacks if world.rank == 0 else (), world, resumed=bool(resumed))


def _run(run: Run, callbacks: Sequence[Any], world: World, *, resumed: bool) -> Result:
    """Train in a folder that this process has locked."""
    config, out = run.config, Path(run.config.out)
    settings = config.model_dump(mode="json")
    models = run.models  # on every rank: weights that are divided are gathered for it

    def begin() -> list[str]:
        if not resumed:
            shutil.rmtree(out / "checkpoints", ignore_errors=True)  # at most that of step 0, of a run that ended there
        changes = provenance.note(out, run.data, models, device_named(config.device), resumed=resumed)
        write_json(out / "run.json", settings)
        return changes

    changes = world.first(begin, "run.json")
    sinks, warnings = open_sinks(config.log, out, settings) if world.rank == 0 else ([], [])
    path = out / "metrics.jsonl" if world.rank == 0 else None
    log = RunLog(path, sinks, warnings, callbacks)
    started = time.perf_counter()
    loop = run.assemble(log)
    loop.state.seconds = time.perf_counter() - started  # one-off preparation is part of the cost
    recorder = run.recorder(loop)
    if recorder:
        log.attach(recorder)
    loop.checkpoints.run = world.first(partial(provenance.run_id, out), "provenance.json")
    loop.restore()
    start = RunStart(
        out,
        step=loop.state.step,
        steps=loop.steps,
        evaluates=loop.evaluate is not None,
        settings=settings_taken(config),
        images=config.images_per_step,
    )
    log.start(start, evaluated=bool(loop.state.before), events=loop.state.events)
    for change in changes:
        log.event(loop.state.step, "provenance", change)
    try:
        with noticed("the run saves a checkpoint after this step and ends") as asked:
            loop.checkpoints.asked = asked
            loop.run()
            result = _finish(loop, run, world)
            if recorder:
                recorder.finish()
        return result
    finally:
        loop.checkpoints.close()
        log.stop()


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: '{out}' cannot be made ({error.strerror}). Fix: choose another folder") from None


def _finish(loop: Loop, run: Run, world: World) -> Result:
    """Leave ``out`` as an ordinary model folder: the last weights, or the best if the run has ever collapsed."""
    state, out = loop.state, Path(run.config.out)
    if state.ends_with_best:
        loop.checkpoints.load_best(loop.student.model)
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
    world.save(loop.student.save, loop.student.model, out)

    def write() -> None:
        seal_model(out)
        (out / "README.md").write_text(run.card(result))
        write_json(out / "result.json", {k: v for k, v in dataclasses.asdict(result).items() if k != "out"})

    world.first(write, "result.json")
    return result
