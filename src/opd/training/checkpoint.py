"""Checkpoints: safetensors and JSON files that are complete or absent.

out/checkpoints/000040/   model.safetensors  optimizer.safetensors  rng.safetensors  state.json
                          [average.safetensors  extrapolation.safetensors  curriculum.safetensors]
out/checkpoints/best/     model.safetensors
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from opd.errors import CheckpointError
from opd.models.weights import load_into, trained
from opd.training.state import State

KEEP = 2
"""Number of checkpoints kept. The one before the last survives a disk that fills up while the last is written."""


class Stateful(Protocol):
    """A part of the run that changes from step to step, such as the optimizer."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything it has learned or counted, by name."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` returned."""
        ...


@dataclass(frozen=True)
class RunState:
    """Everything a resumed run needs.

    Attributes:
        model: the student; its trained parameters are saved.
        state: the numbers.
        parts: the rest, by the name of its file; None for a part that this run does not have.
    """

    model: nn.Module
    state: State
    parts: Mapping[str, Stateful | None]


class Checkpoints:
    """Writes and reads the checkpoints of one run.

    Args:
        folder: ``out/checkpoints``.
        every: steps between checkpoints.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        self.folder = folder
        self.every = every

    def save(self, run: RunState, *, last: bool) -> None:
        """Write a checkpoint if this step is due, the last one, or that of a rollback.

        The folder gets its name when it is complete. The newest two are kept, and those a recovery may return to.
        """
        state = run.state
        if state.step % self.every and not last and state.step != state.rolled_back:
            return
        partial = self.folder / f".{state.step:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, tensors in _tensors(run).items():
            save_file({n: t.detach().contiguous() for n, t in tensors.items()}, partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps(dataclasses.asdict(state)))
        for file in partial.iterdir():
            _flush(file)
        final = self.folder / f"{state.step:06d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(self.folder)
        good = [self._at(state.healthy), self._at(state.proven)]
        for old in self._complete()[:-KEEP]:
            if old not in good:
                shutil.rmtree(old)

    def restore(self, run: RunState) -> State | None:
        """Load the newest checkpoint into the parts of a run.

        Returns:
            The saved numbers; None if there is no checkpoint, and nothing was changed.

        Raises:
            CheckpointError: it cannot be read or does not fit the model.
        """
        complete = self._complete()
        return _load(run, complete[-1]) if complete else None

    def roll_back(self, run: RunState, step: int) -> State:
        """Load the newest checkpoint of this step or an earlier one, and delete all later ones.

        Returns:
            The saved numbers; those of the run stay.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        good = self._at(step)
        if good is None:
            raise CheckpointError(
                f"'{self.folder}' has no checkpoint of step {step} or before to roll back to. Fix: start the run again "
                "in another out"
            )
        saved = _load(run, good)
        for bad in self._complete():
            if bad > good:
                shutil.rmtree(bad.rename(self.folder / f".{bad.name}"))  # a kill leaves no half of one behind
        return saved

    def save_best(self, model: nn.Module) -> None:
        """Keep the trained parameters as the best so far."""
        best = self.folder / "best"
        best.mkdir(parents=True, exist_ok=True)
        partial = best / ".model.safetensors"
        save_file({n: t.detach().contiguous() for n, t in trained(model).items()}, partial)
        _flush(partial)
        partial.replace(best / "model.safetensors")

    def load_best(self, model: nn.Module) -> None:
        """Load the best weights."""
        load_into(trained(model), load_file(self.folder / "best" / "model.safetensors"))

    def _at(self, step: int) -> Path | None:
        """The newest checkpoint of this step or an earlier one."""
        return next((p for p in reversed(self._complete()) if int(p.name) <= step), None)

    def _complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("[0-9]*") if p.is_dir())


def _tensors(run: RunState) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file."""
    parts = {name: part.tensors() for name, part in run.parts.items() if part is not None}
    return {"model": trained(run.model), **parts, "rng": {"torch": torch.get_rng_state()}}


def _load(run: RunState, folder: Path) -> State:
    """Load a checkpoint's tensors into a run; returns the numbers saved with them."""
    try:
        saved = State(**json.loads((folder / "state.json").read_text()))
        load_into(trained(run.model), load_file(folder / "model.safetensors"))
        for name, part in run.parts.items():
            if part is not None:
                part.load(load_file(folder / f"{name}.safetensors"))
        torch.set_rng_state(load_file(folder / "rng.safetensors")["torch"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint '{folder}' cannot be used ({error}). Fix: delete that folder to continue from the one before"
        ) from error
    return saved


def _flush(path: Path) -> None:
    """Wait until a file or folder is on disk, so that a rename never points at missing data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
