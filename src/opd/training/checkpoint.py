"""Checkpoints: safetensors and JSON, each written whole or not at all.

out/checkpoints/000040/   model.safetensors  optimizer.safetensors  rng.safetensors  state.json
                          [average.safetensors  extrapolation.safetensors  curriculum.safetensors]
out/checkpoints/best/     model.safetensors
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from opd.errors import CheckpointError
from opd.training.state import State
from opd.types import Policy

if TYPE_CHECKING:
    from opd.loop import Loop

KEEP = 2
"""Checkpoints kept; the one before the last survives a disk that fills up while the last is written."""


class Checkpoints:
    """Writes and reads the checkpoints of one run.

    Args:
        folder: ``out/checkpoints``.
        every: steps between checkpoints.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        self.folder = folder
        self.every = every

    def save(self, loop: Loop, *, last: bool) -> None:
        """Save the run if this step is due; ``last`` and a rollback always are. The folder appears when it is complete.

        The newest ones are kept, and what a recovery may go back to.
        """
        step = loop.state.step
        if step % self.every and not last and step != loop.state.rolled_back:
            return
        partial = self.folder / f".{step:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        trained = loop.student.model
        save_file(_contiguous(_weights(trained, trained)), partial / "model.safetensors")
        save_file(_contiguous(loop.optimizer.tensors()), partial / "optimizer.safetensors")
        if loop.average:
            save_file(_contiguous(_weights(loop.average.average, trained)), partial / "average.safetensors")
        if loop.extrapolation:
            save_file(_contiguous(loop.extrapolation.previous), partial / "extrapolation.safetensors")
        if loop.curriculum.tensors():
            save_file(loop.curriculum.tensors(), partial / "curriculum.safetensors")
        save_file({"torch": torch.get_rng_state()}, partial / "rng.safetensors")
        (partial / "state.json").write_text(json.dumps(dataclasses.asdict(loop.state)))
        for file in partial.iterdir():
            _flush(file)
        final = self.folder / f"{step:06d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(self.folder)
        complete = self._complete()
        good = [self._at(loop.state.healthy), self._at(loop.state.proven)]
        for old in complete[:-KEEP]:
            if old not in good:
                shutil.rmtree(old)

    def restore(self, loop: Loop) -> bool:
        """Put the newest checkpoint into a freshly built loop.

        Returns:
            False if there is none yet, and nothing was changed.

        Raises:
            CheckpointError: it cannot be read or does not fit the model.
        """
        complete = self._complete()
        if not complete:
            return False
        loop.state = self._load(loop, complete[-1])
        if loop.gate:
            loop.gate.apply(loop.state.after, loop.state.refused)
        return True

    def roll_back(self, loop: Loop, step: int) -> State:
        """Put back the newest checkpoint made at this step or before, and forget those made after it.

        Returns:
            The state it was made in; the loop's own goes on.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        good = self._at(step)
        if good is None:
            raise CheckpointError(f"'{self.folder}' has no checkpoint of step {step} or before to roll back to")
        saved = self._load(loop, good)
        for bad in self._complete():
            if bad > good:
                shutil.rmtree(bad.rename(self.folder / f".{bad.name}"))  # a kill leaves no half of one behind
        return saved

    def _load(self, loop: Loop, folder: Path) -> State:
        """Put a checkpoint's tensors into a loop; returns the state beside them."""
        try:
            saved = State(**json.loads((folder / "state.json").read_text()))
            trained = loop.student.model
            _load_weights(_weights(trained, trained), folder / "model.safetensors")
            loop.optimizer.load_tensors(load_file(folder / "optimizer.safetensors"))
            if loop.average:
                _load_weights(_weights(loop.average.average, trained), folder / "average.safetensors")
            if loop.extrapolation:
                loop.extrapolation.load(load_file(folder / "extrapolation.safetensors"))
            if loop.curriculum.tensors():
                loop.curriculum.load(load_file(folder / "curriculum.safetensors"))
            torch.set_rng_state(load_file(folder / "rng.safetensors")["torch"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"checkpoint '{folder}' cannot be used ({error}); delete that folder to go on from the one before"
            ) from error
        return saved

    def save_best(self, student: Policy) -> None:
        """Keep the student's weights as the best so far."""
        best = self.folder / "best"
        best.mkdir(parents=True, exist_ok=True)
        partial = best / ".model.safetensors"
        save_file(_contiguous(_weights(student.model, student.model)), partial)
        _flush(partial)
        partial.replace(best / "model.safetensors")

    def load_best(self, student: Policy) -> None:
        """Put the best weights back into the student."""
        _load_weights(_weights(student.model, student.model), self.folder / "best" / "model.safetensors")

    def _at(self, step: int) -> Path | None:
        """The newest checkpoint made at this step or before."""
        return next((p for p in reversed(self._complete()) if int(p.name) <= step), None)

    def _complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("[0-9]*") if p.is_dir())


def _weights(model: nn.Module, trained: nn.Module) -> dict[str, Tensor]:
    """A model's parameters, those alone that train in the student; tied ones share a name."""
    names = {name for name, p in trained.named_parameters() if p.requires_grad}
    return {name: p for name, p in model.named_parameters() if name in names}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def _load_weights(parameters: dict[str, Tensor], path: Path) -> None:
    tensors = load_file(path)
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())
        raise ValueError(f"{path.name} and the model differ in {odd[0]}")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _flush(path: Path) -> None:
    """Make sure that what was written is on disk before anything points at it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
