"""Teachers: views, anchors, averages, several teachers, parameterisations and guidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import opd
from opd.axes.base import Objects
from opd.axes.views.plain import PlainView
from opd.diffusion.evaluation import mean_distance
from opd.diffusion.models import DenoisingModel
from opd.diffusion.run import DenoisingRun
from opd.diffusion.sampler import DenoisingSampler
from opd.diffusion.schedules import schedule_of
from opd.diffusion.teachers import DenoisingTeacher, DomainTeachers, ImageView
from opd.diffusion.types import PredictionSignal, PredictionStates
from opd.errors import ModelError
from opd.loop import Loop
from opd.models.forward import sort_key
from opd.output.run_log import RunLog
from opd.types import Prompt, Scored
from support.families import read_denoising
from support.tiny_pipelines import WORDS, prompt_rows, run_tree, write_rows


def loop_of(tree: dict[str, Any], tmp_path: Path) -> tuple[DenoisingRun, Loop]:
    run = DenoisingRun.load(read_denoising(tree), Objects())
    return run, run.assemble(RunLog(tmp_path / "metrics.jsonl", [], []))


def scored(loop: Loop, step: int = 0) -> tuple[Any, dict[str, Scored]]:
    rollouts = loop.sampler.rollout(loop.curriculum.step(step), 0, step)
    return rollouts, {said.term.name: said for said in loop.score(rollouts)}


def with_images(tmp_path: Path, count: int = 8, every: int = 2) -> dict[str, str]:
    """Prompts of which every second has an image."""
    rows = prompt_rows(count)
    for n, row in enumerate(rows[::every]):
        generator = torch.Generator().manual_seed(n)
        pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{n}.png")
        row["image"] = f"{n}.png"
    return {"path": write_rows(tmp_path / "images.jsonl", rows)}


# ------------------------------------------------------------------------------------------------------- what it sees


def test_only_the_teacher_sees_the_image(model: Any) -> None:
    m = model("sd3")
    image = torch.rand(3, 8, 8) * 2 - 1
    bare, shown, other = (
        [Prompt(id="a", text="big red circle", data=data)] for data in ({}, {"image": image}, {"image": -image})
    )
    schedule = schedule_of(m.pipeline.scheduler, steps=3)
    teacher = DenoisingTeacher(m, schedule, guidance=1.0, max_rows=2)
    drawn, same, differs = (DenoisingSampler(m, schedule).rollout(p, 0) for p in (bare, shown, other))
    assert torch.equal(drawn[0].latents_KX, same[0].latents_KX)
    plain = teacher.score(same, PlainView().segments(same))
    seen = teacher.score(same, ImageView().segments(same))
    another = teacher.score(differs, ImageView().segments(differs))
    assert torch.equal(plain.target_TX, teacher.score(drawn, PlainView().segments(drawn)).target_TX)
    assert torch.equal(plain.token_T, seen.token_T)
    assert (seen.target_TX - plain.target_TX).abs().max() > 1e-3
    assert (seen.target_TX - another.target_TX).abs().max() > 1e-4
    assert ImageView().segments(drawn) == []


def test_the_anchor_covers_prompts_without_an_image(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(
        tmp_path / "out",
        folder("sd3"),
        teacher={"weights": "frozen", "view": "image"},
        loss={"anchor": 0.5},
        prompts=with_images(tmp_path),
    )
    rollouts, said = scored(loop_of(tree, tmp_path)[1])
    has = {i for i, r in enumerate(rollouts) if "image" in r.prompt.data}
    assert 0 < len(has) < len(rollouts)
    assert set(said["distill"].signal.rollout_T.tolist()) == has
    assert set(said["anchor"].signal.rollout_T.tolist()) == set(range(len(rollouts))) - has


def test_the_anchor_covers_every_state_for_a_plain_view(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)}, loss={"anchor": 0.5})
    rollouts, said = scored(loop_of(tree, tmp_path)[1])
    assert torch.equal(sort_key(said["distill"].signal), sort_key(said["anchor"].signal))
    assert len(said["anchor"].signal) == 3 * len(rollouts)


def test_a_self_teacher_with_the_image_lowers_the_loss(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(
        tmp_path / "out",
        folder("sd3"),
        teacher={"weights": "frozen", "view": "image"},
        prompts=with_images(tmp_path, every=1),
        optimizer={"steps": 10, "lr": 2e-4},
        rollout={"prompts_per_step": 8},
    )
    result = opd.train(tree)
    lines = (result.out / "metrics.jsonl").read_text().splitlines()
    losses = [row["train"]["loss"] for row in map(json.loads, lines) if "train" in row]
    assert losses[-1] < 0.7 * losses[0]


def test_a_batch_without_images_has_an_empty_signal(tmp_path: Path, folder: Any) -> None:
    """Also with several teachers."""
    for teacher in (
        {"weights": "frozen", "view": "image"},
        {"models": {"default": folder("sd3", 1)}, "view": "image"},
    ):
        tree = run_tree(tmp_path / "out", folder("sd3"), teacher=teacher, prompts=with_images(tmp_path))
        tree["rollout"]["prompts_per_step"] = 1
        _, loop = loop_of(tree, tmp_path)
        said = [scored(loop, step)[1]["distill"] for step in range(8)]
        assert sorted({len(s.signal) for s in said}) == [0, 3]


# ------------------------------------------------------------------------------------------------- which states count


def test_step_weights_scale_states_and_0_leaves_one_out(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(
        tmp_path / "out",
        folder("sd3"),
        teacher={"model": folder("sd3", 1)},
        loss={"step_weights": [1.0, 0.0, 3.0], "anchor": 0.1},
    )
    rollouts, said = scored(loop_of(tree, tmp_path)[1])
    assert all(r.completion_mask == (True, False, True) for r in rollouts)
    for term in said.values():
        assert set(term.signal.position_T.tolist()) == {0, 2}
        last_T = term.signal.position_T == 2
        torch.testing.assert_close(term.weight_T[last_T], 3 * term.weight_T[~last_T])


# ------------------------------------------------------------------------------------------------------ moving average


def test_the_average_moves_by_its_formula(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(
        tmp_path / "out", folder("sd3"), teacher={"weights": {"type": "ema", "decay": 0.75}, "guidance": 2.0}
    )
    run, loop = loop_of(tree, tmp_path)
    assert loop.average is not None
    start = [p.detach().clone() for p in run.student.model.parameters()]
    loop._step(0)
    middle = [p.detach().clone() for p in run.student.model.parameters()]
    loop._step(1)
    end = [p.detach().clone() for p in run.student.model.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(start, end, strict=True))
    for mean, a, b, c in zip(loop.average.average.parameters(), start, middle, end, strict=True):
        once = 0.75 * a + 0.25 * b
        torch.testing.assert_close(mean, 0.75 * once + 0.25 * c)


# ------------------------------------------------------------------------------------------------------------- several


def several(model: Any, *names: str) -> tuple[DenoisingModel, Any, dict[str, DenoisingTeacher]]:
    student = model("sd3")
    schedule = schedule_of(student.pipeline.scheduler, steps=3)
    teachers = {
        name: DenoisingTeacher(model("sd3", seed), schedule, guidance=1.0, max_rows=4)
        for seed, name in enumerate(names, 1)
    }
    return student, schedule, teachers


def in_domains(*domains: str) -> list[Prompt]:
    return [Prompt(id=f"{n}", text=WORDS[n], domain=domain) for n, domain in enumerate(domains)]


def test_each_teacher_scores_its_own_domains(model: Any) -> None:
    student, schedule, teachers = several(model, "a", "b")
    drawn = DenoisingSampler(student, schedule).rollout(in_domains("x", "y", "x"), 0)
    whole = PlainView().segments(drawn)
    said = DomainTeachers(teachers, {"x": {"a": 1.0}, "y": {"b": 1.0}}).score(drawn, whole)
    a, b = (teachers[name].score(drawn, whole) for name in "ab")
    assert torch.equal(sort_key(said), sort_key(a))
    mine_T = (said.rollout_T == 1).view(-1, 1, 1, 1)
    torch.testing.assert_close(said.target_TX, torch.where(mine_T, b.target_TX, a.target_TX))
    for name in ("rollout_T", "position_T", "token_T", "step_T"):
        assert torch.equal(getattr(said, name), getattr(a, name))


def test_two_teachers_of_a_domain_give_their_weighted_mean(tmp_path: Path, model: Any, folder: Any) -> None:
    """And its loss has the gradient of the weighted mean of both losses."""
    student, schedule, teachers = several(model, "a", "b")
    drawn = DenoisingSampler(student, schedule).rollout(in_domains("x", "x", "y"), 0)
    whole = PlainView().segments(drawn)
    said = DomainTeachers(teachers, {"x": {"a": 1.0, "b": 3.0}, "y": {"b": 1.0}}).score(drawn, whole)
    a, b = (teachers[name].score(drawn, whole).target_TX for name in "ab")
    share_T = torch.where(said.rollout_T == 2, 0.0, 0.25).view(-1, 1, 1, 1)
    torch.testing.assert_close(said.target_TX, share_T * a + (1 - share_T) * b)

    models = {"a": {"model": folder("sd3", 1), "domains": ["default"]}}
    models["b"] = {"model": folder("sd3", 2), "domains": ["default"], "weight": 3.0}
    both = gradient(run_tree(tmp_path / "out", folder("sd3"), teacher={"models": models}), tmp_path)
    one, other = (
        gradient(run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", n)}), tmp_path)
        for n in (1, 2)
    )
    torch.testing.assert_close(both, 0.25 * one + 0.75 * other, rtol=1e-3, atol=1e-5 * float(both.abs().max()))


def gradient(tree: Mapping[str, Any], tmp_path: Path) -> Tensor:
    run, loop = loop_of(dict(tree), tmp_path)
    rollouts, said = scored(loop)
    ((_, states),) = loop.forward(rollouts)
    term = said["distill"]
    term.term.objective(states, term.signal, term.weight_T).backward()
    return torch.cat([p.grad.flatten() for p in run.student.model.parameters() if p.grad is not None])


# -------------------------------------------------------------------------------------------- another parameterisation


class InVelocity(torch.nn.Module):
    """A denoiser that converts an inner ε prediction to v = (ε − level x) / signal, of a variance-preserving image."""

    def __init__(self, inner: Any, alphas: Tensor) -> None:
        super().__init__()
        self.inner, self.config, self.alphas = inner, inner.config, alphas

    def forward(self, sample: Tensor, timestep: Tensor, **conditioning: Any) -> tuple[Tensor]:
        alpha = self.alphas[timestep.long()].view(-1, 1, 1, 1)
        eps = self.inner(sample, timestep=timestep, **conditioning)[0]
        return ((eps - (1 - alpha).sqrt() * sample) / alpha.sqrt(),)


def distance(student: DenoisingModel, teacher: DenoisingTeacher, schedule: Any) -> Tensor:
    drawn = DenoisingSampler(student, schedule).rollout(LABELLED, 0)
    signal = teacher.score(drawn, PlainView().segments(drawn))
    own = DenoisingTeacher(student, schedule, guidance=1.0, max_rows=9).score(drawn, PlainView().segments(drawn))
    assert isinstance(signal, PredictionSignal)
    return (own.target_TX - signal.target_TX).abs().max()


LABELLED: Sequence[Prompt] = [Prompt(id=str(n), text="a", data={"label": n}) for n in range(4)]


def test_another_parameterisation_is_converted(model: Any) -> None:
    """The same function in ε and in v has distance 0, in both directions."""
    eps = model("ddim")
    v = model("ddim", prediction="v_prediction")
    v = replace(v, model=InVelocity(eps.model, eps.pipeline.scheduler.alphas_cumprod))
    schedules = [schedule_of(m.pipeline.scheduler, steps=3) for m in (eps, v)]
    for student, teacher, ours, theirs in ((eps, v, *schedules), (v, eps, *reversed(schedules))):
        converted = DenoisingTeacher(teacher, ours, own=theirs, guidance=1.0, max_rows=9)
        raw = DenoisingTeacher(teacher, ours, guidance=1.0, max_rows=9)
        assert distance(student, converted, ours) < 2e-3
        assert distance(student, raw, ours) > 0.1


def test_a_run_takes_a_teacher_with_another_parameterisation(tmp_path: Path, folder: Any) -> None:
    theirs = folder("ddim", 1, prediction="v_prediction")
    run = DenoisingRun.load(
        read_denoising(run_tree(tmp_path / "out", folder("ddim"), teacher={"model": theirs})), Objects()
    )
    (term,) = run.terms()
    drawn = run.config.rollout.source.build(run).rollout(run.prompts, 0)
    said = mean_distance(
        drawn, reader=run.samplers.student_passes, teacher=term.teacher, view=PlainView(), objective=term.objective
    )
    assert 0 < said["distance"] < float("inf")
    teacher = run.teachers["teacher"]
    expected = DenoisingSampler(teacher, schedule_of(teacher.pipeline.scheduler, steps=3)).rollout(run.prompts, 0)
    drawn = run.samplers.of_teachers(held_out=True).rollout(run.prompts, 0)
    for a, b in zip(drawn, expected, strict=True):  # it draws as itself, too
        torch.testing.assert_close(a.latents_KX, b.latents_KX)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (("ddim", {}), ("ddim", {"beta_end": 0.01})),
        (("ddim", {}), ("ddim", {"timestep_spacing": "trailing"})),
        (("sd3", {}), ("sd3", {"shift": 3.0})),
    ],
)
def test_a_teacher_on_another_schedule_is_refused(tmp_path: Path, folder: Any, student: Any, teacher: Any) -> None:
    theirs = folder(teacher[0], 1, **teacher[1])
    tree = run_tree(tmp_path / "out", folder(student[0], **student[1]), teacher={"model": theirs})
    with pytest.raises(ModelError, match=r"teacher\.model: .*its schedule is another.*Fix: give it the student's"):
        opd.train(tree)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- guidance


def test_a_guided_teacher_predicts_with_guidance(tmp_path: Path, folder: Any) -> None:
    run, loop = loop_of(
        run_tree(tmp_path / "out", folder("sd3"), teacher={"weights": "frozen", "guidance": 4.0}), tmp_path
    )
    rollouts, said = scored(loop)
    m, signal = run.student, said["distill"].signal
    assert isinstance(signal, PredictionSignal)
    state_TX = torch.stack([t.latents_KX[:-1] for t in rollouts]).flatten(0, 1)
    with torch.no_grad():
        conditioning = [t for t in m.encode([r.prompt for r in rollouts]) for _ in range(3)]
        expected = m.predict(state_TX, run.samplers.schedule.time(signal.step_T), conditioning, 4.0)
        plain = m.predict(state_TX, run.samplers.schedule.time(signal.step_T), conditioning)
    torch.testing.assert_close(signal.target_TX, expected, atol=1e-5, rtol=1e-4)
    ((_, states),) = loop.forward(rollouts)
    assert isinstance(states, PredictionStates)
    torch.testing.assert_close(states.prediction_TX.detach(), plain, atol=1e-5, rtol=1e-4)


def test_guidance_of_the_student_applies_to_rollouts_and_loss(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(
        tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3"), "guidance": 3.0}, rollout={"guidance": 3.0}
    )
    run, loop = loop_of(tree, tmp_path)
    rollouts, said = scored(loop)
    drawn = DenoisingSampler(run.student, run.samplers.schedule, guidance=3.0).rollout([r.prompt for r in rollouts], 0)
    assert all(torch.equal(a.latents_KX, b.latents_KX) for a, b in zip(rollouts, drawn, strict=True))
    ((_, states),) = loop.forward(rollouts)
    term = said["distill"]
    assert term.term.objective(states, term.signal, term.weight_T).item() < 1e-9  # the same weights, guided alike


def test_a_first_batch_without_a_target_makes_no_update(tmp_path: Path, folder: Any) -> None:
    rows = with_images(tmp_path, count=8, every=8)
    tree = run_tree(
        tmp_path / "out", folder("sd3"), teacher={"weights": "frozen", "view": "image"}, prompts=rows, seed=1
    )
    tree["rollout"]["prompts_per_step"] = 1
    _, loop = loop_of(tree, tmp_path)
    assert "image" not in loop.curriculum.step(0)[0].data
    start = {n: p.detach().clone() for n, p in loop.student.model.named_parameters()}
    assert "loss" not in loop._step(0)
    assert [event["kind"] for event in loop.state.events] == ["idle"]
    assert all(torch.equal(p, start[n]) for n, p in loop.student.model.named_parameters())
