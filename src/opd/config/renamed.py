"""Old keys and values of run files; they are refused with the new ones, not translated."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED = {
    "teacher.ema_decay": "teacher.weights={type: ema, decay: …}",
    "teacher.combine": "experimental.combine",
    "teacher.gate.overlap": "teacher.gate.min_overlap",
    "loss.positions": "loss.token_weights",
    "loss.positions.mean": "loss.aggregate",
    "loss.positions.hardest": "experimental.hardest_tokens",
    "loss.outcome": "loss.reward",
    "loss.gold": "loss.sft",
    "loss.beta": "loss.divergence={type: …, beta: …}",
    "loss.clip": "loss.signal={type: full, clip: …}",
    "loss.top_k": "loss.signal={type: top_k, k: …}",
    "loss.sampled": "loss.signal={type: sampled, …}",
    "loss.hidden": "loss.signal={type: hidden, …}",
    "loss.cross": "loss.signal={type: other_tokenizer, …}",
    "loss.unsure": "loss.signal={type: sampled, teacher_entropy: {threshold: …}}",
    "rollout.policy": "rollout.source",
    "rollout.batch": "rollout.prompts_per_step",
    "rollout.samples": "rollout.rollouts_per_prompt",
    "rollout.off_policy": "rollout.source={type: mixture, share: …}",
    "rollout.off_policy_steps": "rollout.source={type: mixture, first_steps: …}",
    "rollout.other": "rollout.source={type: mixture, other: …}",
    "rollout.offline": "rollout.source={type: recorded, prompts: …}",
    "rollout.prefix": "rollout.source={type: prefix, tokens: …}",
    "rollout.prefix_turns": "rollout.source={type: prefix, turns: …}",
    "rollout.turns_grow_every": "rollout.grow_turns_every",
    "rollout.max_rows": "rollout.engine.max_rows",
    "rollout.curriculum": "experimental.curriculum",
    "optimizer.extrapolate": "experimental.extrapolate",
    "eval.samples": "eval.rollouts_per_prompt",
    "eval.conflict": "experimental.conflict",
}
"""Old keys of a language run and the new ones."""

RENAMED_VALUES = {
    ("loss.signal", "tokens"): "write sft",
    ("loss.signal", "cross"): "write other_tokenizer",
    ("teacher.weights", "model"): "leave it out, as teacher.model alone names another model",
    ("rollout.source", "answers"): "write references",
}
"""Old values of a language run, and the fix."""

RENAMED_OF_DENOISING = {
    "rollout.policy": "rollout.source",
    "rollout.batch": "rollout.prompts_per_step",
    "rollout.samples": "rollout.rollouts_per_prompt",
    "teacher.ema_decay": "teacher.weights={type: ema, decay: …}",
    "loss.outcome": "loss.reward",
    "loss.reward_steps": "loss.reward_gradient={weight: …, steps: …}",
    "eval.samples": "eval.images_per_prompt",
}
"""Old keys of a denoising run and the new ones."""

RENAMED_VALUES_OF_DENOISING = {
    ("loss.signal", "picture"): "write image",
    ("rollout.source", "pictures"): "write images",
    ("teacher.weights", "model"): "leave it out, as teacher.model alone names another model",
}
"""Old values of a denoising run, and the fix."""

RENAMED_BY_FAMILY: dict[str, tuple[Mapping[str, str], Mapping[tuple[str, str], str]]] = {
    "language": (RENAMED, RENAMED_VALUES),
    "diffusion": (RENAMED_OF_DENOISING, RENAMED_VALUES_OF_DENOISING),
}
"""Old keys and values of each family."""
