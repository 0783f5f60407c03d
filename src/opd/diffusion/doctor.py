"""`opd doctor` for denoising runs: a trial without a trace."""

from __future__ import annotations

from collections.abc import Iterator

from opd.diffusion.context import DenoisingContext
from opd.diffusion.evaluation import describe, mean_distance

ROLLOUTS = 32
"""Most trajectories that are generated."""


def findings(run: DenoisingContext) -> Iterator[str]:
    """The lines of `opd doctor`: what was loaded, and the loss of a few trajectories."""
    config, model = run.config, run.student.model
    count = sum(p.numel() for p in model.parameters())
    yield f"student   {config.student}: {type(run.student.pipeline).__name__}, {count / 1e6:.2f} M in the denoiser"
    for name, teacher in run.teachers.items():
        yield f"teacher   {name}: {teacher.source}"
    if not run.teachers:
        own = config.loss.signal.reads_teacher
        yield f"teacher   {f'own weights, {config.teacher.weights.type}' if own else 'none'}"
    yield f"prompts   {len(run.prompts)} to train on, {len(run.held_out)} held out"
    yield from (f"          {note}" for note in run.notes)
    yield f"sampler   {config.rollout.steps} steps from noise {float(run.samplers.schedule.level_K[0]):.2f}"
    samples = config.rollout.rollouts_per_prompt
    images_first = sorted(run.prompts, key=lambda p: p.data.get("image") is None)  # the teacher may need them
    chosen = images_first[: max(ROLLOUTS // samples, 1)]
    source = config.rollout.source.build(run)
    rollouts = source.rollout([p for p in chosen for _ in range(samples)], config.seed)
    own_rollouts = [r for r in rollouts if r.source == "student"]
    if own_rollouts:
        yield "rollouts  " + ", ".join(f"{name} {value:.3f}" for name, value in describe(own_rollouts).items())
    main = run.terms()[0]
    assert main.view is not None
    scorer, view, objective = main.teacher, main.view, main.objective
    signal = scorer.score(rollouts, view.segments(rollouts))
    if len(signal):
        passes = run.samplers.student_passes
        found = mean_distance(rollouts, reader=passes, teacher=scorer, view=view, objective=objective)
        yield f"signal    {len(signal)} states, aligned; loss {found['distance']:.4f} a state"
    else:
        yield f"WARNING   no target for these trajectories: {main.if_empty}"
