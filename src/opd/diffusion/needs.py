"""Facts that one setting of a denoising run may need of the others. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

from opd.axes.needs import EVALUATION, Fact


def _unless(holds: bool, against: str) -> str | None:
    return None if holds else against


def _teacher_in_use(config: Any) -> str | None:
    used = config.loss.signal.reads_teacher or config.rollout.source.uses_teacher
    return _unless(used, f"loss.signal={config.loss.signal.type}")


def _another_teacher(config: Any) -> str | None:
    teacher, guided = config.teacher, config.teacher.guidance != 1 or config.rollout.guidance != 1
    differs = teacher.is_model or not teacher.weights.is_student or teacher.view.type != "plain" or guided
    return _unless(differs, f"teacher.weights={teacher.weights.type}, teacher.view=plain")


def _one_weight_per_step(config: Any) -> str | None:
    number, steps = len(config.loss.step_weights or ()), config.rollout.steps
    return _unless(number == steps, f"{number} weights, rollout.steps={steps}")


def _one_noise_level_per_step(config: Any) -> str | None:
    number, steps = len(config.rollout.sigmas), config.rollout.steps
    return _unless(number == steps, f"{number} noise levels, rollout.steps={steps}")


def _weighted_last_states(config: Any) -> str | None:
    weights, gradient = config.loss.step_weights, config.loss.reward_gradient
    last = gradient.steps if gradient else 1
    return _unless(weights is None or any(weights[-last:]), f"loss.step_weights is 0 for the last {last}")


def _enough_steps(config: Any) -> str | None:
    gradient, steps = config.loss.reward_gradient, config.rollout.steps
    return _unless(gradient is None or gradient.steps <= steps, f"{gradient and gradient.steps}, rollout.steps={steps}")


FACTS: dict[str, Fact] = {
    "evaluation": EVALUATION,
    "density": Fact(
        "a Gaussian density at every step",
        lambda c: _unless(c.rollout.noise > 0 or c.rollout.renoise, "rollout.noise=0"),
        "set rollout.noise above 0, for instance to 0.7",
    ),
    "several trajectories": Fact(
        "several trajectories of each prompt",
        lambda c: _unless(c.rollout.rollouts_per_prompt > 1, "rollout.rollouts_per_prompt=1"),
        "set rollout.rollouts_per_prompt to 2 or more",
    ),
    "student's trajectories": Fact(
        "the student's own trajectories",
        lambda c: _unless(c.rollout.source.type == "student", f"rollout.source={c.rollout.source.type}"),
        "set rollout.source=student",
    ),
    "trajectories": Fact(
        "the steps of trajectories",
        lambda c: _unless(c.rollout.source.type != "images", "rollout.source=images"),
        "leave it out",
    ),
    "noised images": Fact(
        "noised images to train on",
        lambda c: _unless(c.rollout.source.type == "images", f"rollout.source={c.rollout.source.type}"),
        "set both loss.signal=image and rollout.source=images, or neither",
    ),
    "image target": Fact(
        "the clean image as target",
        lambda c: _unless(c.loss.signal.type == "image", f"loss.signal={c.loss.signal.type}"),
        "set both loss.signal=image and rollout.source=images, or neither",
    ),
    "divergence of predictions": Fact(
        "a divergence of predictions, as noised images have no steps",
        lambda c: _unless(not c.loss.divergence.startswith("transition"), f"loss.divergence={c.loss.divergence}"),
        "set loss.divergence=velocity or x0",
    ),
    "one weight per step": Fact(
        "one weight per step", _one_weight_per_step, "give loss.step_weights one number for each of rollout.steps"
    ),
    "one noise level per step": Fact(
        "one noise level per step",
        _one_noise_level_per_step,
        "give rollout.sigmas one number for each of rollout.steps",
    ),
    "a weight above 0": Fact(
        "a weight above 0",
        lambda c: _unless(any(c.loss.step_weights or ()), "all are 0"),
        "give a step a weight above 0",
    ),
    "weighted last states": Fact(
        "states with a weight",
        _weighted_last_states,
        "raise loss.reward_gradient.steps, or give one of these states a weight",
    ),
    "enough steps": Fact(
        "at most as many states as there are steps", _enough_steps, "lower loss.reward_gradient.steps"
    ),
    "scaled noise": Fact(
        "a sampler that scales its noise, and renoise adds all of it anew",
        lambda c: _unless(not c.rollout.renoise, "rollout.renoise=true"),
        "leave rollout.noise out",
    ),
    "teacher model": Fact(
        "a teacher that is a model of its own",
        lambda c: _unless(c.teacher.is_model, f"teacher.weights={c.teacher.weights.type}"),
        "give teacher.model or teacher.models",
    ),
    "self-teacher": Fact(
        "a teacher without a model of its own",
        lambda c: _unless(not c.teacher.is_model, f"teacher.{'model' if c.teacher.model else 'models'}"),
        "leave one of them out",
    ),
    "single teacher": Fact(
        "to be the only teacher", lambda c: _unless(not c.teacher.models, "teacher.models"), "leave one of them out"
    ),
    "teacher in use": Fact("a signal or a rollout source that uses it", _teacher_in_use, "leave teacher out"),
    "another teacher": Fact(
        "a teacher that differs from the student, or there is nothing to learn",
        _another_teacher,
        "give teacher.view=image, teacher.guidance above 1, or teacher.model",
    ),
    "text": Fact("rollouts of text", lambda c: f"family={c.family}", "leave it out"),
}
"""Every fact that a setting may need, by name."""
