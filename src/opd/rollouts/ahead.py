"""The next step's rollouts, written by servers while this step's are trained on: their weights are one update older."""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from opd.data.curriculum import Curriculum
from opd.errors import OpdError
from opd.rollouts.sampler import Sampler
from opd.servers.rollouts import VllmEngine
from opd.types import Generation, Prompt, Rollout, RolloutSource

STORED = TypeAdapter(list[Rollout])


@dataclass(frozen=True)
class _Sent:
    """An engine whose weights are sent before it is asked, so that no thread reads weights that are being updated."""

    engine: VllmEngine
    reports = independent = True

    def sync(self) -> None:
        """Nothing."""

    def generate(self, *arguments: Any, **settings: Any) -> list[Generation]:
        """That of the engine."""
        return self.engine.generate(*arguments, **settings)


@dataclass(frozen=True)
class _Asked:
    """Rollouts of a step that are on their way.

    Attributes:
        label: of the weights that write them.
    """

    step: int
    label: str
    future: Future[Sequence[Rollout]]


class Ahead:
    """Gives the rollouts of a step, and asks for those of the next one with the same weights.

    Rollouts are written on a thread of their own. Those that were asked for are in every checkpoint, so a resumed run
    trains on the same tokens.

    Args:
        source: ``apart`` from the run's other parts, with or without the questions to teachers.
        engine: writes for it; the next push waits for open rollouts.
        curriculum: its prompts depend on the step alone.
        steps: of the run; nothing is asked for beyond them.
    """

    def __init__(self, source: RolloutSource, engine: VllmEngine, curriculum: Curriculum, steps: int) -> None:
        self.source, self.engine, self.curriculum, self.steps = source, engine, curriculum, steps
        self.asked: _Asked | None = None

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> Sequence[Rollout]:
        """One rollout per prompt, in order; those of the first step are written now."""
        if self.asked is None or self.asked.step != step:
            self._ask(prompts, seed, step)
        rollouts = self._wait()
        self.asked = None
        if step + 1 < self.steps:
            self._ask(self.curriculum.step(step + 1), seed + 1, step + 1)
        return rollouts

    def _ask(self, prompts: Sequence[Prompt], seed: int, step: int) -> None:
        self.engine.sync()
        assert self.engine.pushed
        future: Future[Sequence[Rollout]] = Future()
        self.engine.open = future
        self.asked = _Asked(step, self.engine.pushed.label, future)

        def work() -> None:
            try:
                future.set_result(self.source.rollout(prompts, seed, step))
            except BaseException as error:  # raised where the rollouts are waited for
                future.set_exception(error)

        threading.Thread(target=work, name="rollouts", daemon=True).start()

    def _wait(self) -> Sequence[Rollout]:
        assert self.asked
        self.engine.until_done(self.asked.future)
        return self.asked.future.result()

    def stop(self) -> None:
        """The run is over, maybe by an error: rollouts that are still written may push no weights any more."""
        self.engine.requests.ended = True

    def tensors(self) -> dict[str, Tensor]:
        """The rollouts that were asked for, waited for, as the bytes of a JSON text; nothing if there are none."""
        if self.asked is None:
            return {}
        try:
            rollouts = self._wait()
        except OpdError:  # the step that needs them raises it; a run that goes on later asks again
            return {}
        rows = STORED.dump_python([*rollouts], exclude={"__all__": {"prompt"}}, warnings=False)
        stored = {"step": self.asked.step, "weights": self.asked.label, "rollouts": rows}
        text = json.dumps(stored, default=lambda value: dict(value) if isinstance(value, Mapping) else str(value))
        return {"asked": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what ``tensors`` gave; other rollouts that were asked for are dropped.

        Raises:
            ValueError: they are not those of the run's prompts.
        """
        self.asked = None
        if not tensors:
            return
        stored = json.loads(tensors["asked"].numpy().tobytes())
        prompts = self.curriculum.step(stored["step"])
        rows = [{**row, "prompt": p} for row, p in zip(stored["rollouts"], prompts, strict=True)]
        future: Future[Sequence[Rollout]] = Future()
        future.set_result(STORED.validate_python(rows))
        self.asked = _Asked(stored["step"], stored["weights"], future)


def apart(sampler: Sampler, engine: VllmEngine) -> Sampler:
    """The sampler for a thread of its own: a tokenizer keeps state while it reads, so it gets a copy."""
    return dataclasses.replace(sampler, engine=_Sent(engine), chat=copy.deepcopy(sampler.chat))
