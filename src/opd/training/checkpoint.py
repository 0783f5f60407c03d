"""Checkpoints: folders that are complete or absent, and that the model's own library loads.

out/checkpoints/000040/   config.json  model.safetensors  tokenizer.json ...
                          optimizer.safetensors  rng.safetensors  state.json  files.json
                          [average.safetensors  extrapolation.safetensors  curriculum.safetensors  ahead.safetensors]
out/checkpoints/best/     config.json  model.safetensors  tokenizer.json ...  files.json

``trained.safetensors`` is added where the library's own file does not hold exactly the parameters that train: for
frozen parameters, adapters, and layers that are saved in another form. ``buffers.safetensors`` is added for models
with buffers that belong to their weights. A damaged checkpoint is never used: the one before it is.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from functools import partial as bound
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from opd.distributed import World
from opd.errors import CheckpointError
from opd.models.sealed import flush, opened, seal
from opd.models.weights import buffers, trained
from opd.training import random_states
from opd.training.beside import snapshot
from opd.training.interrupts import Asked, Interrupted
from opd.training.state import RunState, State
from opd.training.tensor_files import BUFFERS, check_finite, holds, load_weights, save_tensors

TRAINED = "trained.safetensors"
"""The trained parameters, if the library's own file holds others too, or none of them."""

INTERRUPTED = "interrupted"
"""Empty file in a checkpoint that a signal asked for. Only a resumed run reads it: a rollback returns to the steps that
an uninterrupted run would have saved."""

BEST = "best"

UNUSABLE = (ValueError, KeyError, TypeError, SafetensorError, FileNotFoundError, NotADirectoryError)
"""Errors of a damaged checkpoint. A disk or folder that cannot be read now is another matter."""


class Checkpoints:
    """Writes and reads the checkpoints of one run.

    Args:
        folder: ``out/checkpoints``.
        every: steps between checkpoints.
        keep: number of newest checkpoints kept; None keeps all. With two, the one before the last survives a disk that
            fills up while the last is written.
        write: writes a folder that the model's own library loads; it gets the whole weights as ``state`` if
            they are divided among processes, and a copy as ``model`` if it is written beside the next steps.
        world: the processes of the run. The first one writes, and all of them read.
        beside: copy the state and write it in a thread, while the run goes on; of a single process.

    Attributes:
        asked: the signal that has asked the run to end.
        run: the run's id, which each checkpoint has to bear.
        warnings: a sentence for each damage that was found; the loop turns them into events.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        keep: int | None = 2,
        write: Callable[..., None] = lambda folder, **given: None,
        world: World | None = None,
        beside: bool = False,
    ) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.write = write
        self.world = world or World()
        self.asked = Asked()
        self.run = ""
        self.warnings: list[str] = []
        self._thread = futures.ThreadPoolExecutor(1, "checkpoint") if beside else None
        self._writing: futures.Future[None] | None = None

    def save(self, run: RunState, *, last: bool) -> None:
        """Write a checkpoint if this step is due, the last one, that of a rollback, or a signal asks for it.

        The folder gets its name when it is complete, which is later where it is written beside the next steps: after
        the last step or a signal it is there. The newest are kept, and those a recovery may return to.

        Raises:
            CheckpointError: it, or one that was written beside the last steps, cannot be written.
            Interrupted: a signal has asked the run to end, and the checkpoint is written.
        """
        state = run.state
        due = state.step % self.every == 0 or last or state.step == state.rolled_back
        # Of several processes these are copies, which a signal that comes now does not change: all ranks act alike.
        every = self.world.gather(self.asked, "signals")
        asked = next((one for one in every if one.number), every[0])
        if due or asked.number or (self._writing and self._writing.done()):
            self.wait()
        if due or asked.number:
            self._write(run, due=due)
        if last or asked.number:
            self.wait()
        if asked.number and not last:
            raise Interrupted(
                asked.number,
                f"interrupted by {asked.name} after step {state.step}, with a checkpoint in "
                f"'{self.folder / f'{state.step:06d}'}'; go on with --resume",
            )

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            CheckpointError: it cannot be written.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        """Wait for the checkpoint that is being written, whatever becomes of it; none can be written any more."""
        if self._thread:
            self._thread.shutdown()

    def _write(self, run: RunState, *, due: bool) -> None:
        random = random_states.named(self.world.gather(random_states.of_this_rank(), "random states"))
        if self._thread:
            self._writing = self._thread.submit(self._write_files, snapshot(run), random, due=due)
        else:
            self._write_files(run, random, due=due)

    def _write_files(self, run: RunState, random: dict[str, Tensor], *, due: bool) -> None:
        state, world = run.state, self.world

        def add(partial: Path) -> None:
            save_tensors(random, partial / "rng.safetensors")
            (partial / "state.json").write_text(json.dumps(dataclasses.asdict(state)))
            if not due:
                (partial / INTERRUPTED).touch()

        with self._complete_folder(f"{state.step:06d}", run.model) as partial:
            for name, part in run.parts.items():
                if part is not None:
                    world.write(save_tensors, part.tensors(), partial / f"{name}.safetensors")
            world.first(bound(add, partial), "checkpoint")
        world.first(bound(self._prune, state), "checkpoint")

    def _prune(self, state: State) -> None:
        """Delete the checkpoints that nothing needs."""
        newest, due = self._complete()[-1], self._due()
        kept = due if self.keep is None else due[-self.keep :]
        good = [newest, self._at(state.healthy), self._at(state.proven), *kept]
        for old in self._complete():
            if old not in good:
                shutil.rmtree(old)

    def restore(self, run: RunState) -> State | None:
        """Load the newest checkpoint that is whole into the parts of a run.

        Returns:
            The saved numbers; None if there is no checkpoint, and nothing was changed.

        Raises:
            CheckpointError: none is whole and fits the model, or the best weights are damaged.
        """
        self.wait()
        complete = self._complete()
        if not complete:
            return None
        saved = self._newest_whole(run, complete)
        if saved.best:
            self._check_best(saved)
        return saved

    def roll_back(self, run: RunState, step: int) -> State:
        """Load the newest whole checkpoint of this step or an earlier one, and delete all later ones.

        Returns:
            The saved numbers; those of the run stay.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        self.wait()
        good = [path for path in self._due() if int(path.name) <= step]
        if not good:
            raise CheckpointError(
                f"'{self.folder}' has no checkpoint of step {step} or before to roll back to. Fix: start the run again "
                "in another out"
            )
        saved = self._newest_whole(run, good)

        def delete_later() -> None:
            for bad in self._complete():
                if int(bad.name) > saved.step:
                    shutil.rmtree(bad.rename(self.folder / f".{bad.name}"))  # a kill leaves no half of one behind

        self.world.first(delete_later, "rollback")
        return saved

    def save_best(self, model: nn.Module) -> None:
        """Keep the trained parameters as the best so far, in a folder that the model's own library loads.

        Raises:
            CheckpointError: it cannot be written.
        """
        self.wait()
        with self._complete_folder(BEST, model):
            pass

    def load_best(self, model: nn.Module) -> None:
        """Load the best weights.

        Raises:
            CheckpointError: they cannot be read.
        """
        folder = self.world.first(self._best, "best weights")
        try:
            load_weights(model, folder / self._opened(folder)["weights"])
        except UNUSABLE as error:
            raise CheckpointError(
                f"checkpoint '{folder}' cannot be used ({error}). Fix: start the run again in another out"
            ) from error

    def _best(self) -> Path:
        """The folder of the best weights. A kill between two renames leaves only the former ones."""
        best, former = self.folder / BEST, self.folder / f".former-{BEST}"
        if former.is_dir() and not best.exists():
            former.rename(best)
        return best

    def _check_best(self, saved: State) -> None:
        """Refuse best weights that are damaged, before the run counts on them.

        A user may delete them: the best weights from here on are kept then, unless the run has to end with the lost
        ones.
        """
        folder = self.world.first(self._best, "best weights")
        needed = saved.rollbacks or saved.stopped_by not in (None, "idle")
        if not folder.exists() and not needed:
            self.warnings.append(
                f"the best weights, of step {saved.best_step}, are not there any more: the best ones of later "
                "evaluations are kept"
            )
            saved.best, saved.best_step, saved.stale = {}, 0, 0
            return
        try:
            self._opened(folder)
        except UNUSABLE as error:
            fix = "start the run again in another out" if needed else "put it right, or delete it to go on without them"
            raise CheckpointError(f"the best weights '{folder}' cannot be used ({error}). Fix: {fix}") from error

    def _newest_whole(self, run: RunState, folders: Sequence[Path]) -> State:
        """Load the newest of some checkpoints that is whole, and set newer ones aside with a warning."""
        damaged: dict[Path, str] = {}
        for folder in reversed(folders):
            try:
                saved = self._load(run, folder)
            except UNUSABLE as error:
                damaged[folder] = str(error)
                continue
            self.world.gather(saved.step, "checkpoint")  # before rank 0 changes the folder, all have read it
            self.warnings += self.world.first(bound(_set_aside, damaged, folder), "checkpoint")
            return saved
        newest, why = next(iter(damaged.items()))
        others = "nor can any before it" if len(damaged) > 1 else "and there is none before it"
        raise CheckpointError(
            f"checkpoint '{newest}' cannot be used ({why}), {others}. Fix: restore it from a copy, or start the run "
            "again in another out"
        )

    def _load(self, run: RunState, folder: Path) -> State:
        """Load a checkpoint's tensors into a run; returns the numbers saved with them."""
        weights = folder / self._opened(folder)["weights"]
        saved = State(**json.loads((folder / "state.json").read_text()))
        if saved.step != int(folder.name):
            raise ValueError(f"'state.json' is of step {saved.step}")
        ended = saved.stopped_by is not None  # such as by the guard against weights that are not finite
        load_weights(run.model, weights, finite=not ended)
        for name, part in run.parts.items():
            if part is not None:
                tensors = load_file(folder / f"{name}.safetensors")
                if name != "curriculum" and not ended:  # NaN there is a prompt that was not measured yet
                    check_finite(tensors, f"{name}.safetensors")
                part.load(tensors)
        random_states.put_back(load_file(folder / "rng.safetensors"), self.world.rank)
        return saved

    def _opened(self, folder: Path) -> dict[str, Any]:
        """What is known of a folder whose files are unchanged and are this run's."""
        facts = opened(folder)
        if facts["run"] != self.run:
            raise ValueError("it is of another run")
        if facts["name"] != folder.name:
            raise ValueError(f"it was saved as '{facts['name']}'")
        return facts

    @contextmanager
    def _complete_folder(self, name: str, model: nn.Module) -> Iterator[Path]:
        """A folder with the model, to write more into; it gets its name once all of it is on disk. Rank 0 writes."""
        partial, final, former = self.folder / f".{name}", self.folder / name, self.folder / f".former-{name}"

        def begin(state: Mapping[str, Tensor] | None) -> str:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            return self._weights(model, partial, state)

        def complete(weights: str) -> None:
            seal(partial, run=self.run, name=name, weights=weights)
            shutil.rmtree(former, ignore_errors=True)
            if final.exists():
                final.rename(former)
            partial.rename(final)
            flush(self.folder)
            shutil.rmtree(former, ignore_errors=True)

        try:
            weights = self.world.first(bound(begin, self.world.weights(model)), "checkpoint")
            yield partial
            self.world.first(bound(complete, weights), "checkpoint")
        except (OSError, SafetensorError) as error:
            if self.world.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint '{final}' cannot be written ({error}). Fix: make room or correct the folder, and go "
                "on with --resume"
            ) from error

    def _weights(self, model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> str:
        """Write the model as its own library does; returns the file that holds just the trained parameters."""
        self.write(folder, **({"model": model} if self._thread else {}), **({} if state is None else {"state": state}))
        if own := buffers(model):
            save_tensors(own, folder / BUFFERS)
        parameters = trained(model)
        if state is not None:
            parameters = {name: state[name] for name in parameters}
        for path in folder.glob("*.safetensors"):
            if holds(path, parameters):
                return path.name
        save_tensors(parameters, folder / TRAINED)
        return TRAINED

    def _at(self, step: int) -> Path | None:
        """The newest checkpoint of this step or an earlier one."""
        return next((p for p in reversed(self._due()) if int(p.name) <= step), None)

    def _complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted((p for p in self.folder.glob("[0-9]*") if p.name.isdecimal() and p.is_dir()), key=_step)

    def _due(self) -> list[Path]:
        """Finished checkpoints that no signal asked for, oldest first."""
        return [path for path in self._complete() if not (path / INTERRUPTED).exists()]


def _set_aside(damaged: Mapping[Path, str], used: Path) -> list[str]:
    """Rename damaged checkpoints; returns a sentence for each."""
    said = []
    for bad, why in damaged.items():
        aside = bad.with_name(f"damaged-{bad.name}")
        shutil.rmtree(aside, ignore_errors=True)
        bad.rename(aside)
        said.append(
            f"checkpoint '{bad.name}' is damaged ({why}), so the run continues from '{used.name}'; the damaged one "
            f"is now '{aside}' and can be deleted"
        )
    return said


def _step(folder: Path) -> int:
    return int(folder.name)
