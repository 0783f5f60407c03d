"""Trajectories: images as from the pipeline, densities of the steps, and alignment of states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opd.axes.views.plain import PlainView
from opd.diffusion.divergences import log_density
from opd.diffusion.forward import states_at, student_passes
from opd.diffusion.models import DenoisingModel
from opd.diffusion.sampler import DenoisingSampler
from opd.diffusion.schedules import schedule_of
from opd.diffusion.teachers import DenoisingTeacher
from opd.diffusion.types import Trajectory, fingerprint
from opd.errors import AlignmentError
from opd.models.forward import align
from opd.types import Prompt

PROMPTS = [
    Prompt(id="a", text="big red circle", data={"label": 1}),
    Prompt(id="b", text="blue cross", data={"label": 3}),
    Prompt(id="c", text="small green square", data={"label": 0}),
]
STEPS = 3


def sampler(model: DenoisingModel, *, guidance: float = 1.0, **how: Any) -> DenoisingSampler:
    schedule = schedule_of(model.pipeline.scheduler, steps=STEPS, **how)
    return DenoisingSampler(model, schedule, guidance=guidance)


def ours(model: DenoisingModel, **how: Any) -> tuple[Tensor, Tensor]:
    """The initial noise and the clean latents of our trajectories."""
    drawn = sampler(model, **how).rollout(PROMPTS, seed=5)
    return torch.stack([t.latents_KX[0] for t in drawn]), torch.stack([t.latents_KX[-1] for t in drawn])


def given(noise_BX: Tensor, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Replace the initial noise of a pipeline by ours."""
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise_BX.expand(shape).clone())


# ------------------------------------------------------------------------------ the images of the pipeline's own call


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_stable_diffusion_3_gives_the_pipelines_latents(model: Any, guidance: float, shift: float) -> None:
    m = model("sd3", shift=shift)
    noise_BX, clean_BX = ours(m, guidance=guidance)
    theirs_BX = m.pipeline(
        [p.text for p in PROMPTS],
        height=8,
        width=8,
        sigmas=[1.0, 2 / 3, 1 / 3],
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=noise_BX,
        max_sequence_length=0,
        output_type="latent",
    ).images
    torch.testing.assert_close(clean_BX, theirs_BX, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_stable_diffusion_gives_the_pipelines_latents(model: Any, guidance: float) -> None:
    m = model("sd")
    noise_BX, clean_BX = ours(m, guidance=guidance)
    theirs_BX = m.pipeline(
        [p.text for p in PROMPTS],
        height=16,
        width=16,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=noise_BX,
        output_type="latent",
    ).images
    torch.testing.assert_close(clean_BX, theirs_BX, atol=1e-4, rtol=1e-4)
    theirs_BX = m.pipeline.vae.decode(clean_BX / m.pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(m.decode(clean_BX), theirs_BX, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_gives_the_pipelines_images(model: Any, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers.pipelines.ddim.pipeline_ddim as module

    m = model("ddim", prediction=prediction, classes=None)
    noise_BX, clean_BX = ours(m)
    given(noise_BX, monkeypatch, module)
    theirs = m.pipeline(batch_size=3, num_inference_steps=STEPS, output_type="np").images
    images_BX = (clean_BX / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images_BX.permute(0, 2, 3, 1), torch.from_numpy(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_dit_gives_the_pipelines_images(model: Any, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers.pipelines.dit.pipeline_dit as module

    m = model("dit")
    noise_BX, clean_BX = ours(m, guidance=guidance)
    given(noise_BX, monkeypatch, module)
    labels = [p.data["label"] for p in PROMPTS]
    theirs = m.pipeline(labels, guidance_scale=guidance, num_inference_steps=STEPS, output_type="np").images
    images_BX = (m.decode(clean_BX) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images_BX.permute(0, 2, 3, 1), torch.from_numpy(theirs), atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------------------- densities and recorded noise

NOISY = [("sd3", {"noise": 0.7}), ("ddim", {"noise": 1.0}), ("dit", {"noise": 0.5}), ("sd3", {"renoise": True})]


def noisy_steps(drawn: list[Trajectory], schedule: Any) -> list[int]:
    return [k for k in range(STEPS) if schedule.std_K[k]]


@pytest.mark.parametrize(("kind", "how"), NOISY)
def test_a_trajectory_stores_its_sampling_density(model: Any, kind: str, how: dict[str, Any]) -> None:
    m = model(kind)
    own = sampler(m, **how)
    drawn = own.rollout(PROMPTS, seed=1)
    m.model.train()  # as it is when the loop reads
    (where, states), *more = student_passes(m, drawn, schedule=own.schedule, guidance=1.0)
    assert not more
    rows = torch.tensor([int(k) in noisy_steps(drawn, own.schedule) for k in where.position_T])
    assert int(rows.sum()) >= 2 * len(PROMPTS)
    where, states = where.take(rows), states.take(rows)
    state_TX, step_T = states_at(drawn, where)
    next_TX, _ = states_at(drawn, where, later=1)
    again_T = log_density(own.schedule, step_T, state_TX, states.prediction_TX, next_TX)
    was_T = torch.tensor(
        [drawn[r].logprobs[k] for r, k in zip(where.rollout_T.tolist(), where.position_T.tolist(), strict=True)]
    )
    torch.testing.assert_close(again_T.detach(), was_T, atol=2e-3, rtol=1e-5)


@pytest.mark.parametrize(("kind", "how"), [*NOISY, ("sd", {})])
def test_the_stored_noise_gives_each_next_state(model: Any, kind: str, how: dict[str, Any]) -> None:
    m = model(kind)
    own = sampler(m, **how)
    with torch.no_grad():
        for t, conditioning in zip(own.rollout(PROMPTS, seed=1), m.encode(PROMPTS), strict=True):
            for k in range(STEPS):
                at = torch.tensor([k])
                prediction = m.predict(t.latents_KX[k][None], own.schedule.time(at), [conditioning])
                after = own.schedule.next(at, t.latents_KX[k][None], prediction, t.noise_KX[k][None])
                torch.testing.assert_close(after[0], t.latents_KX[k + 1], atol=2e-5, rtol=1e-5)


def test_only_a_noisy_step_has_a_density(model: Any) -> None:
    m = model("ddim")
    (still,) = sampler(m).rollout(PROMPTS[:1], 0)
    assert all(p != p for p in still.logprobs)
    (noisy,) = sampler(m, noise=1.0).rollout(PROMPTS[:1], 0)
    assert [p == p for p in noisy.logprobs] == [True, True, False]  # DDIM's last step ends in the denoised mean


# ---------------------------------------------------------------------------------------------------- who begins where


def test_noise_depends_on_the_prompt_alone(model: Any) -> None:
    m = model("sd3")
    own = sampler(m, noise=0.7)
    together = own.rollout([PROMPTS[0], PROMPTS[1], PROMPTS[0]], seed=3)
    alone = own.rollout([PROMPTS[1]], seed=3)[0]
    assert torch.equal(alone.latents_KX[0], together[1].latents_KX[0])
    assert torch.equal(alone.noise_KX, together[1].noise_KX)
    assert not torch.equal(together[0].latents_KX[0], together[2].latents_KX[0])
    assert not torch.equal(own.rollout([PROMPTS[1]], seed=4)[0].latents_KX[0], alone.latents_KX[0])


def test_max_rows_changes_only_rounding(model: Any) -> None:
    m = model("sd3")
    schedule = schedule_of(m.pipeline.scheduler, steps=STEPS)
    whole, parts = (DenoisingSampler(m, schedule, max_rows=rows).rollout(PROMPTS, 0) for rows in (256, 2))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.latents_KX, b.latents_KX, atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------------- proof of the same states


def test_fingerprints_differ_for_one_flipped_bit_and_for_another_time() -> None:
    latents_TX = torch.randn(4, 3, 8, 8)
    time_T = torch.tensor([1000.0, 750.0, 500.0, 250.0])
    first_T = fingerprint(latents_TX, time_T)
    assert torch.equal(first_T, fingerprint(latents_TX.clone(), time_T.clone()))
    assert len(first_T.unique()) == 4
    for bit in range(32):
        flipped_TX = latents_TX.clone()
        flipped_TX.view(torch.int32)[2, 1, 3, 5] ^= -(2**31) if bit == 31 else 1 << bit
        assert (fingerprint(flipped_TX, time_T) != first_T).tolist() == [False, False, True, False]
    later_T = time_T.nextafter(torch.tensor(0.0))
    assert (fingerprint(latents_TX, later_T) != first_T).all()
    swapped_TX = latents_TX.clone()
    swapped_TX[0, 0, 0, 0], swapped_TX[0, 0, 0, 1] = latents_TX[0, 0, 0, 1], latents_TX[0, 0, 0, 0]
    assert fingerprint(swapped_TX, time_T)[0] != first_T[0]


def scores(model: DenoisingModel, drawn: list[Trajectory], seen: list[Trajectory], schedule: Any) -> None:
    """Align the student's states with those of other trajectories that a teacher scored."""
    own = sampler(model)
    (where, _), *_ = student_passes(model, drawn, schedule=own.schedule, guidance=1.0)
    teacher = DenoisingTeacher(model, schedule, guidance=1.0, max_rows=4)
    align(drawn, where, teacher.score(seen, PlainView().segments(seen)))


def test_a_teacher_that_scores_another_state_is_refused(model: Any) -> None:
    m = model("sd3")
    own = sampler(m)
    drawn = own.rollout(PROMPTS, 0)
    scores(m, drawn, drawn, own.schedule)
    shifted = [replace(t, latents_KX=t.latents_KX.roll(1, dims=0)) for t in drawn]
    with pytest.raises(AlignmentError, match="prompt 'a'"):
        scores(m, drawn, shifted, own.schedule)
    late = replace(own.schedule, time_K=own.schedule.time_K + 1)
    with pytest.raises(AlignmentError, match="prompt 'a'"):
        scores(m, drawn, drawn, late)
    with pytest.raises(AlignmentError):
        scores(m, drawn, [replace(t, steps=(1, 2, 0)) for t in drawn], own.schedule)
