"""Checkpoints: folders that are complete or absent, and that the model's own library loads.

out/checkpoints/000040/   config.json  model.safetensors  tokenizer.json ...
                          optimizer.safetensors  rng.safetensors  state.json  files.json
                          [average.safetensors  extrapolation.safetensors  curriculum.safetensors]
out/checkpoints/best/     config.json  model.safetensors  tokenizer.json ...  files.json

``trained.safetensors`` is added where the library's own file does not hold exactly the parameters that train: for
frozen parameters, adapters, and layers that are saved in another form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from opd.errors import CheckpointError
from opd.models.weights import load_into, trained
from opd.training.interrupts import Asked, Interrupted
from opd.training.state import State

FILES = "files.json"
"""The name of the file with the trained weights, and the sha256 of every other file; written last."""

TRAINED = "trained.safetensors"
"""The trained parameters, if the library's own file holds others too, or none of them."""

INTERRUPTED = "interrupted"
"""Empty file in a checkpoint that a signal asked for. Only a resumed run reads it: a rollback returns to the steps that
an uninterrupted run would have saved."""


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
        keep: number of newest checkpoints kept; None keeps all. With two, the one before the last survives a disk that
            fills up while the last is written.
        write: writes a folder that the model's own library loads.

    Attributes:
        asked: the signal that has asked the run to end.
    """

    def __init__(
        self, folder: Path, *, every: int, keep: int | None = 2, write: Callable[[Path], None] = lambda folder: None
    ) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.write = write
        self.asked = Asked()

    def save(self, run: RunState, *, last: bool) -> None:
        """Write a checkpoint if this step is due, the last one, that of a rollback, or a signal asks for it.

        The folder gets its name when it is complete. The newest are kept, and those a recovery may return to.

        Raises:
            CheckpointError: it cannot be written.
            Interrupted: a signal has asked the run to end, and the checkpoint is written.
        """
        state = run.state
        due = state.step % self.every == 0 or last or state.step == state.rolled_back
        if due or self.asked.number:
            with self._complete_folder(f"{state.step:06d}", run.model) as partial:
                for name, tensors in _tensors(run).items():
                    _save(tensors, partial / f"{name}.safetensors")
                (partial / "state.json").write_text(json.dumps(dataclasses.asdict(state)))
                if not due:
                    (partial / INTERRUPTED).touch()
            self._prune(state)
        if self.asked.number and not last:
            raise Interrupted(
                self.asked.number,
                f"interrupted by {self.asked.name} after step {state.step}, with a checkpoint in "
                f"'{self.folder / f'{state.step:06d}'}'; go on with --resume",
            )

    def _prune(self, state: State) -> None:
        """Delete the checkpoints that nothing needs."""
        newest, due = self._complete()[-1], self._due()
        kept = due if self.keep is None else due[-self.keep :]
        good = [newest, self._at(state.healthy), self._at(state.proven), *kept]
        for old in self._complete():
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
        """Keep the trained parameters as the best so far, in a folder that the model's own library loads.

        Raises:
            CheckpointError: it cannot be written.
        """
        with self._complete_folder("best", model):
            pass

    def load_best(self, model: nn.Module) -> None:
        """Load the best weights.

        Raises:
            CheckpointError: they cannot be read.
        """
        best, former = self.folder / "best", self.folder / ".former-best"
        folder = best if best.is_dir() else former  # a kill between two renames leaves only the former ones
        with _readable(folder, "start the run again in another out"):
            load_into(trained(model), load_file(_checked(folder)))

    @contextmanager
    def _complete_folder(self, name: str, model: nn.Module) -> Iterator[Path]:
        """A folder with the model, to write more into; it gets its name once all of it is on disk."""
        partial, final, former = self.folder / f".{name}", self.folder / name, self.folder / f".former-{name}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            weights = self._weights(model, partial)
            yield partial
            digests = {path.name: _digest(path) for path in sorted(partial.iterdir()) if path.is_file()}
            (partial / FILES).write_text(json.dumps({"weights": weights, "sha256": digests}, indent=2))
            for file in partial.iterdir():
                _flush(file)
            shutil.rmtree(former, ignore_errors=True)
            if final.exists():
                final.rename(former)
            partial.rename(final)
            _flush(self.folder)
            shutil.rmtree(former, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint '{final}' cannot be written ({error}). Fix: make room or correct the folder, and go "
                "on with --resume"
            ) from error

    def _weights(self, model: nn.Module, folder: Path) -> str:
        """Write the model as its own library does; returns the file that holds just the trained parameters."""
        self.write(folder)
        parameters = trained(model)
        for path in folder.glob("*.safetensors"):
            if _holds(path, parameters):
                return path.name
        _save(parameters, folder / TRAINED)
        return TRAINED

    def _at(self, step: int) -> Path | None:
        """The newest checkpoint of this step or an earlier one."""
        return next((p for p in reversed(self._due()) if int(p.name) <= step), None)

    def _complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("[0-9]*") if p.is_dir())

    def _due(self) -> list[Path]:
        """Finished checkpoints that no signal asked for, oldest first."""
        return [path for path in self._complete() if not (path / INTERRUPTED).exists()]


def _tensors(run: RunState) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file beside the weights."""
    parts = {name: part.tensors() for name, part in run.parts.items() if part is not None}
    return {**parts, "rng": _random_states()}


def _random_states() -> dict[str, Tensor]:
    """The random state of torch on the CPU, and on each GPU that is in use."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _load(run: RunState, folder: Path) -> State:
    """Load a checkpoint's tensors into a run; returns the numbers saved with them."""
    with _readable(folder, "delete that folder to continue from the one before"):
        weights = _checked(folder)
        saved = State(**json.loads((folder / "state.json").read_text()))
        load_into(trained(run.model), load_file(weights))
        for name, part in run.parts.items():
            if part is not None:
                part.load(load_file(folder / f"{name}.safetensors"))
        states = load_file(folder / "rng.safetensors")
        torch.set_rng_state(states.pop("torch"))
        for name, state in states.items():
            if (number := int(name.removeprefix("cuda"))) < torch.cuda.device_count():
                torch.cuda.set_rng_state(state, number)
    return saved


@contextmanager
def _readable(folder: Path, fix: str) -> Iterator[None]:
    """One sentence for whatever is wrong with a folder."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint '{folder}' cannot be used ({error}). Fix: {fix}") from error


def _checked(folder: Path) -> Path:
    """The file with the trained weights, after every file was compared with its digest.

    Raises:
        ValueError: a file was changed after the checkpoint was complete.
    """
    files = json.loads((folder / FILES).read_text())
    for name, digest in files["sha256"].items():
        if _digest(folder / name) != digest:
            raise ValueError(f"'{name}' has changed since it was written")
    return folder / str(files["weights"])


def _holds(path: Path, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a file has exactly these tensors."""
    with safe_open(path, framework="pt") as file:
        return set(file.keys()) == parameters.keys() and all(
            file.get_slice(name).get_shape() == list(parameter.shape) for name, parameter in parameters.items()
        )


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file or folder is on disk, so that a rename never points at missing data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
