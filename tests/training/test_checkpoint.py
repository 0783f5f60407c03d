"""Checkpoints of a run: what is restored, what is kept, and what a failure leaves behind."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import opd
from opd.errors import CheckpointError
from opd.models.sealed import seal
from opd.training import checkpoint, tensor_files
from opd.training.checkpoint import Checkpoints
from opd.training.interrupts import Interrupted
from opd.training.optimizer import Optimizer
from opd.training.state import RunState, State
from support.interrupt import Interrupt
from support.models import make_model
from support.small_runs import PROMPTS, small_run


def a_run(**numbers: Any) -> RunState:
    """A linear layer after one optimizer step."""
    model = nn.Linear(3, 2)
    optimizer = Optimizer(model, lr=0.1, steps=9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step(0, 1.0)
    return RunState(model, State(**numbers), {"optimizer": optimizer, "average": None})


def at(run: RunState, **numbers: Any) -> RunState:
    return dataclasses.replace(run, state=State(**numbers))


def steps(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*"))


def test_weights_optimizer_numbers_and_random_state_are_restored(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run(step=4, tokens=30, targets={"distill": 12})
    assert checkpoints.restore(run) is None
    checkpoints.save(run, last=False)
    weight = run.model.get_parameter("weight").detach().clone()
    moments = {name: t.clone() for name, t in run.parts["optimizer"].tensors().items()}  # type: ignore[union-attr]
    drawn = torch.rand(5)
    fresh = a_run()
    assert checkpoints.restore(fresh) == State(step=4, tokens=30, targets={"distill": 12})
    assert torch.equal(torch.rand(5), drawn)
    assert torch.equal(fresh.model.get_parameter("weight"), weight)
    restored = fresh.parts["optimizer"].tensors()  # type: ignore[union-attr]
    assert restored.keys() == moments.keys()
    assert all(torch.equal(tensor, moments[name]) for name, tensor in restored.items())


def test_only_steps_that_are_due_the_last_and_a_rollback_are_saved(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=3), a_run()
    for step in range(1, 5):
        checkpoints.save(at(run, step=step), last=False)
    assert steps(tmp_path) == ["000003"]
    checkpoints.save(at(run, step=4, rolled_back=4), last=False)
    checkpoints.save(at(run, step=5), last=True)
    assert steps(tmp_path) == ["000004", "000005"]


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run()
    for step in range(1, 6):
        checkpoints.save(at(run, step=step, healthy=step, proven=step), last=False)
    assert steps(tmp_path) == ["000004", "000005"]


@pytest.mark.parametrize(("keep", "kept"), [(1, [5]), (3, [3, 4, 5]), (None, [1, 2, 3, 4, 5])])
def test_the_run_file_says_how_many_are_kept(tmp_path: Path, keep: int | None, kept: list[int]) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1, keep=keep), a_run()
    for step in range(1, 6):
        checkpoints.save(at(run, step=step, healthy=step, proven=step), last=False)
    assert steps(tmp_path) == [f"{step:06d}" for step in kept]


@pytest.mark.parametrize("name", ["trained", "optimizer", "rng", "state"])
def test_a_flipped_bit_is_noticed_and_named(tmp_path: Path, name: str) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run(step=1)
    checkpoints.save(run, last=False)
    path = tmp_path / "000001" / (f"{name}.json" if name == "state" else f"{name}.safetensors")
    content = bytearray(path.read_bytes())
    content[-2] ^= 64
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"000001' cannot be used \\('{path.name}' has changed since"):
        checkpoints.restore(a_run())


def test_a_signal_gets_a_checkpoint_that_rollbacks_do_not_see(tmp_path: Path) -> None:
    """A rollback of the resumed run returns to the step that an uninterrupted run would have saved."""
    checkpoints, run = Checkpoints(tmp_path, every=4), a_run()
    checkpoints.save(at(run, step=4, healthy=6, proven=4), last=False)
    checkpoints.asked.number = signal.SIGTERM
    with pytest.raises(Interrupted, match="interrupted by SIGTERM after step 6, with a checkpoint in .*000006") as end:
        checkpoints.save(at(run, step=6, healthy=6, proven=4), last=False)
    assert end.value.number == signal.SIGTERM
    assert steps(tmp_path) == ["000004", "000006"]
    checkpoints.asked.number = None
    assert checkpoints.restore(run) == State(step=6, healthy=6, proven=4)
    checkpoints.save(at(run, step=8, healthy=6, proven=4), last=False)
    assert steps(tmp_path) == ["000004", "000008"]
    assert checkpoints.roll_back(run, 7).step == 4


def test_the_last_step_ends_the_run_whatever_asks_for_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=4)
    checkpoints.asked.number = signal.SIGINT
    checkpoints.save(at(a_run(), step=6), last=True)
    assert steps(tmp_path) == ["000006"]


def test_checkpoints_that_a_rollback_may_need_are_kept_too(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run()
    for step in range(1, 9):
        checkpoints.save(at(run, step=step, healthy=min(step, 3), proven=min(step, 2)), last=False)
    assert steps(tmp_path) == ["000002", "000003", "000007", "000008"]
    assert checkpoints.roll_back(run, 3).step == 3
    assert steps(tmp_path) == ["000002", "000003"]


def test_a_rollback_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of step 3 or before"):
        Checkpoints(tmp_path, every=1).roll_back(a_run(), 3)


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("bias", "offset"): tensor for name, tensor in tensors.items()}


def fewer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "bias"}


def more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "extra": torch.zeros(1)}


@pytest.mark.parametrize(("change", "name"), [(renamed, "bias"), (fewer, "bias"), (more, "extra")])
def test_weights_of_another_model_are_refused_by_name(tmp_path: Path, change: Any, name: str) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run(step=1)
    checkpoints.save(run, last=False)
    path = tmp_path / "000001" / "trained.safetensors"
    save_file(change(load_file(path)), path)
    seal(tmp_path / "000001", run="", name="000001", weights=path.name)
    with pytest.raises(CheckpointError, match=f"000001.*the file and the model differ in '{name}'"):
        checkpoints.restore(a_run())


def half(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write the first half of the file, as on a disk that fills up."""
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    raise OSError("no space left on device")


def test_a_failure_while_the_best_weights_are_written_leaves_the_previous_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, model = Checkpoints(tmp_path, every=1), nn.Linear(3, 2)
    checkpoints.save_best(model)
    best = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    with monkeypatch.context() as patched:
        patched.setattr(tensor_files, "save_file", half)
        with pytest.raises(CheckpointError, match=r"cannot be written \(no space left.*Fix: make room"):
            checkpoints.save_best(model)
    checkpoints.load_best(model)
    assert torch.equal(model.weight, best)


def test_a_failure_while_a_checkpoint_is_written_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run(step=1)
    checkpoints.save(run, last=False)
    with monkeypatch.context() as patched:
        patched.setattr(tensor_files, "save_file", half)
        with pytest.raises(CheckpointError, match=r"cannot be written \(no space left.*Fix: make room"):
            checkpoints.save(at(run, step=2), last=False)
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]  # half a checkpoint would take the room
    saved = checkpoints.restore(a_run())
    assert saved is not None
    assert saved.step == 1


def test_best_weights_that_were_deleted_are_those_of_no_evaluation(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run()
    checkpoints.save_best(run.model)
    checkpoints.save(at(run, step=1, best={"accuracy": 0.9}, best_step=1, stale=2), last=False)
    shutil.rmtree(tmp_path / "best")
    assert checkpoints.restore(run) == State(step=1)
    assert checkpoints.warnings[0].startswith("the best weights, of step 1, are not there any more")


@pytest.mark.parametrize("numbers", [{"rollbacks": 1}, {"stopped_by": "collapse"}])
def test_best_weights_that_the_run_has_to_end_with_are_missed(tmp_path: Path, numbers: dict[str, Any]) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run()
    checkpoints.save_best(run.model)
    checkpoints.save(at(run, step=1, best={"accuracy": 0.9}, best_step=1, **numbers), last=False)
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(CheckpointError, match="the best weights .* cannot be used .* Fix: start the run again"):
        checkpoints.restore(run)


class Unmeasured:
    """A part with prompts that were not measured yet."""

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"divergence": torch.tensor([0.5, torch.nan])}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        assert tensors["divergence"].isnan().tolist() == [False, True]


def test_only_a_curriculum_may_hold_what_is_not_a_number(tmp_path: Path) -> None:
    run = a_run(step=1)
    for name, warned in (("curriculum", False), ("average", True)):
        checkpoints = Checkpoints(tmp_path / name, every=1)
        held = dataclasses.replace(run, parts={**run.parts, name: Unmeasured()})
        checkpoints.save(held, last=False)
        if warned:
            with pytest.raises(CheckpointError, match="'divergence' in 'average.safetensors' has a value that is not"):
                checkpoints.restore(held)
        else:
            assert checkpoints.restore(held) == State(step=1)


def test_a_copy_under_another_step_is_not_used(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run(step=1)
    checkpoints.save(run, last=False)
    shutil.copytree(tmp_path / "000001", tmp_path / "000002")
    assert checkpoints.restore(run) == State(step=1)
    assert "'000002' is damaged (it was saved as '000001')" in checkpoints.warnings[0]


def test_what_a_kill_left_of_a_checkpoint_is_no_part_of_the_next(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run(step=1)
    (tmp_path / ".000001").mkdir()
    (tmp_path / ".000001" / "average.safetensors").write_bytes(b"half")
    checkpoints.save(run, last=False)
    assert not (tmp_path / "000001" / "average.safetensors").exists()
    assert checkpoints.restore(run) == State(step=1)


def test_a_kill_between_the_renames_of_the_best_weights_leaves_the_former_ones(tmp_path: Path) -> None:
    checkpoints, model = Checkpoints(tmp_path, every=1), nn.Linear(3, 2)
    checkpoints.save_best(model)
    best = model.weight.detach().clone()
    (tmp_path / "best").rename(tmp_path / ".former-best")
    with torch.no_grad():
        model.weight.add_(1.0)
    checkpoints.load_best(model)
    assert torch.equal(model.weight, best)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 64
    path.write_bytes(content)


def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1, keep=None), a_run()
    for step in (8, 9, 10):
        checkpoints.save(at(run, step=step), last=False)
    flipped(tmp_path / "000010" / "optimizer.safetensors")
    (tmp_path / "000009" / "rng.safetensors").unlink()
    saved = checkpoints.restore(a_run())
    assert saved is not None
    assert saved.step == 8
    assert steps(tmp_path) == ["000008", "damaged-000009", "damaged-000010"]
    assert [text.partition(", so")[0] for text in checkpoints.warnings] == [
        "checkpoint '000010' is damaged ('optimizer.safetensors' has changed since it was written)",
        "checkpoint '000009' is damaged ('rng.safetensors' is missing)",
    ]


def test_a_rollback_passes_over_a_damaged_checkpoint(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1, keep=None), a_run()
    for step in (1, 2, 3):
        checkpoints.save(at(run, step=step), last=False)
    flipped(tmp_path / "000002" / "trained.safetensors")
    assert checkpoints.roll_back(run, 2).step == 1
    assert steps(tmp_path) == ["000001", "damaged-000002"]
    assert "'000002' is damaged" in checkpoints.warnings[0]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run()
    for step in (999_999, 1_000_000):
        checkpoints.save(at(run, step=step, healthy=step, proven=step), last=False)
    (tmp_path / "2-copy").mkdir()
    saved = checkpoints.restore(a_run())
    assert saved is not None
    assert saved.step == 1_000_000


def without(end: str) -> Any:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(end)}


def other(name: str, value: torch.Tensor) -> Any:
    return lambda tensors: {**tensors, name: value}


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("optimizer", without("bias.exp_avg"), "the optimizer's 'bias.exp_avg' is missing"),
        ("optimizer", other("gain.step", torch.ones(())), "the optimizer has no 'gain.step'"),
        ("optimizer", other("bias.exp_avg", torch.ones(3)), "the shape of the optimizer's 'bias.exp_avg' differs"),
        ("optimizer", other("bias.exp_avg", torch.full((2,), torch.inf)), "'bias.exp_avg' in 'optimizer.safetensors'"),
        ("trained", other("bias", torch.tensor([1.0, torch.nan])), "'bias' in 'trained.safetensors' has a value that"),
        ("trained", other("bias", torch.ones(1)), r"the shapes of 'bias' in the file and the model differ, \[1\] and"),
        ("rng", other("torch", torch.ones(3)), "'rng.safetensors' has no random state of torch"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_whatever_their_digest(
    tmp_path: Path, file: str, change: Any, reason: str
) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run(step=1)
    checkpoints.save(run, last=False)
    path = tmp_path / "000001" / f"{file}.safetensors"
    save_file(change(load_file(path)), path)
    seal(tmp_path / "000001", run="", name="000001", weights="trained.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"000001' cannot be used \({reason}.*, and there is none before it\. Fix"
    ):
        checkpoints.restore(a_run())


def test_a_run_that_ended_with_weights_that_are_not_finite_is_found_as_it_was(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1), a_run(step=1, stopped_by="non_finite")
    with torch.no_grad():
        run.model.get_parameter("bias").fill_(torch.nan)
    checkpoints.save(run, last=True)
    saved = checkpoints.restore(a_run())
    assert saved is not None
    assert saved.stopped_by == "non_finite"


def test_buffers_that_belong_to_the_weights_are_restored(tmp_path: Path) -> None:
    checkpoints, model = Checkpoints(tmp_path, every=1), nn.BatchNorm1d(3)
    model.register_buffer("derived", torch.ones(2), persistent=False)
    model(torch.randn(4, 3))
    run = RunState(model, State(step=1), {})
    checkpoints.save(run, last=False)
    checkpoints.save_best(model)
    assert model.running_mean is not None
    mean = model.running_mean.clone()
    assert load_file(tmp_path / "best" / "buffers.safetensors").keys() == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    for load in (lambda: checkpoints.restore(run), lambda: checkpoints.load_best(model)):
        model(torch.randn(4, 3))
        load()
        assert torch.equal(model.running_mean, mean)
        assert model.num_batches_tracked == 1


def test_everything_is_on_disk_before_a_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        assert {*self.iterdir(), self} <= set(flushed)
        return rename(self, target)

    monkeypatch.setattr("opd.models.sealed.flush", flushed.append)
    monkeypatch.setattr(checkpoint, "flush", flushed.append)
    monkeypatch.setattr(Path, "rename", renamed)
    Checkpoints(tmp_path, every=1).save(a_run(step=1), last=False)
    assert flushed[-1] == tmp_path


# ---- beside the next steps -------------------------------------------------------------------------------------


def slow_to_seal(patched: pytest.MonkeyPatch) -> threading.Event:
    """No checkpoint is complete before the event is set."""
    go, seal_now = threading.Event(), seal

    def sealed(folder: Path, **facts: str) -> None:
        assert go.wait(20)
        seal_now(folder, **facts)

    patched.setattr(checkpoint, "seal", sealed)
    return go


def test_a_checkpoint_written_beside_is_of_the_moment_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1, beside=True), a_run(step=1, tokens=5)
    go = slow_to_seal(monkeypatch)
    weight = run.model.get_parameter("weight").detach().clone()
    moments = {name: t.clone() for name, t in run.parts["optimizer"].tensors().items()}  # type: ignore[union-attr]
    checkpoints.save(run, last=False)
    drawn = torch.rand(3)
    assert steps(tmp_path) in ([], [".000001"])  # a kill now leaves what was there before
    run.state.tokens = 99
    run.model(torch.ones(1, 3)).sum().backward()
    run.parts["optimizer"].step(1, 1.0)  # type: ignore[union-attr]
    go.set()
    fresh = a_run()
    assert checkpoints.restore(fresh) == State(step=1, tokens=5)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(fresh.model.get_parameter("weight"), weight)
    assert not torch.equal(run.model.get_parameter("weight"), weight)
    restored = fresh.parts["optimizer"].tensors()  # type: ignore[union-attr]
    assert all(torch.equal(restored[name], tensor) for name, tensor in moments.items())
    checkpoints.close()


def test_the_last_checkpoint_and_that_of_a_signal_are_waited_for(tmp_path: Path) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=1, beside=True), a_run()
    checkpoints.save(at(run, step=1), last=False)
    checkpoints.save(at(run, step=2), last=True)
    assert steps(tmp_path) == ["000001", "000002"]
    checkpoints.asked.number = signal.SIGTERM
    with pytest.raises(Interrupted):
        checkpoints.save(at(run, step=3), last=False)
    assert steps(tmp_path) == ["000002", "000003"]
    checkpoints.close()


@pytest.mark.parametrize("then", ["step", "last", "best", "rollback"])
def test_a_full_disk_beside_the_run_ends_it_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    checkpoints, run = Checkpoints(tmp_path, every=2, beside=True), a_run()
    checkpoints.save(at(run, step=2), last=True)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full)
    checkpoints.save(at(run, step=4), last=False)
    checkpoints._thread.submit(int).result()  # type: ignore[union-attr]  # all before it is done
    noticed = {
        "step": lambda: checkpoints.save(at(run, step=5), last=False),
        "last": lambda: checkpoints.save(at(run, step=6), last=True),
        "best": lambda: checkpoints.save_best(run.model),
        "rollback": lambda: checkpoints.roll_back(run, 2),
    }[then]
    with pytest.raises(CheckpointError, match=r"000004' cannot be written \(.*No space left.*\)\. Fix: make room"):
        noticed()
    monkeypatch.undo()
    assert steps(tmp_path) == ["000002"]
    assert checkpoints.restore(a_run()) == State(step=2)
    checkpoints.close()


@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 2}}])
def test_a_run_with_checkpoints_beside_it_continues_bit_for_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    def train(name: str, *, beside: bool, **more: Any) -> dict[str, torch.Tensor]:
        tree = small_run(tmp_path / name, report=False, optimizer={"steps": 4}, **settings)
        tree["checkpoint"] = {"every": 1, "beside": beside}
        opd.train(tree, student=make_model(0), teacher=make_model(1), prompts=PROMPTS, **more)
        (file,) = tmp_path.glob(f"{name}/*model.safetensors")
        return load_file(file)

    right = train("whole", beside=False)
    with pytest.raises(KeyboardInterrupt):
        train("cut", beside=True, callbacks=[Interrupt(3)])
    assert steps(tmp_path / "cut" / "checkpoints")[-1] == "000002"
    found = train("cut", beside=True, resume=True)
    assert found.keys() == right.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in right.items())
    newest = [
        load_file(tmp_path / name / "checkpoints" / "000004" / "optimizer.safetensors") for name in ("cut", "whole")
    ]
    assert all(torch.equal(newest[0][name], tensor) for name, tensor in newest[1].items())
