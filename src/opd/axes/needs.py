"""Facts that one setting may need of the others, and the one check of a whole run file.

A setting names facts (``Strict.needs``); a fact says how a run file may lack it, and what to do then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that holds of a run file, or does not.

    Attributes:
        words: what is needed, for the sentence "KEY needs WORDS".
        lacks: takes the config; returns the conflicting setting, or None if the fact holds.
        fix: what to change.
    """

    words: str
    lacks: Callable[[Any], str | None]
    fix: str


def _source(config: Any) -> str | None:
    source = config.rollout.source
    return None if source.sources == {"student"} else f"rollout.source={source.type}"


def _own_weights(config: Any) -> str | None:
    return None if config.teacher.is_model else f"teacher.weights={config.teacher.weights.type}"


def _drawn_from(config: Any) -> str | None:
    rollout = config.rollout
    cut = {"top_p": rollout.top_p < 1, "top_k": rollout.top_k > 0, "min_p": rollout.min_p > 0}
    if key := next((key for key, holds in cut.items() if holds), None):
        return f"rollout.{key}={getattr(rollout, key):g}"
    if rollout.temperature != config.loss.temperature:
        return f"rollout.temperature={rollout.temperature:g}, loss.temperature={config.loss.temperature:g}"
    return None


def _several(config: Any) -> str | None:
    return "teacher.models" if config.teacher.models else "teacher.gate" if config.teacher.gate else None


def _nothing_new(config: Any) -> str | None:
    teacher = config.teacher
    same = not teacher.is_model and teacher.weights.is_student and teacher.view.type == "plain"
    return f"teacher.weights={teacher.weights.type}, teacher.view=plain" if same else None


def _fixed_divergence(config: Any) -> str | None:
    signal = config.loss.signal
    if signal.token_ratios:
        return f"loss.signal={signal.type}, whose sampled tokens estimate reverse_kl only"
    return None if signal.compares else f"loss.signal={signal.type}"


def _signal(*, attribute: str) -> Callable[[Any], str | None]:
    def lacks(config: Any) -> str | None:
        signal = config.loss.signal
        return None if getattr(signal, attribute) else f"loss.signal={signal.type}"

    return lacks


EVALUATION = Fact(
    "an evaluation",
    lambda c: None if c.eval.prompts or getattr(c.eval, "text", None) else "no eval.prompts",
    "give eval.prompts",
)

FACTS: dict[str, Fact] = {
    "teacher pass": Fact(
        "a signal that a teacher gives", _signal(attribute="reads_teacher"), "set loss.signal=full, top_k or sampled"
    ),
    "distributions": Fact(
        "a signal of whole distributions", _signal(attribute="distributions"), "set loss.signal=full or top_k"
    ),
    "divergence": Fact(
        "a signal that compares distributions", _fixed_divergence, "set loss.signal=full or top_k, or leave it out"
    ),
    "token ratios": Fact(
        "the sampled tokens' log-ratios", _signal(attribute="token_ratios"), "set loss.signal=sampled"
    ),
    "token losses": Fact(
        "a loss that measures each token's distance to the teacher",
        _signal(attribute="token_losses"),
        "set loss.signal=full or top_k, or leave it out",
    ),
    "mixable signal": Fact(
        "a signal that several teachers can give together",
        _signal(attribute="mixable"),
        "set loss.signal=full, top_k or sampled",
    ),
    "same tokenizer": Fact(
        "a teacher with the student's tokenizer",
        lambda c: None if c.loss.signal.same_tokenizer else f"loss.signal={c.loss.signal.type}",
        "leave one of them out, or take a teacher with the same tokenizer and loss.signal=full",
    ),
    "recordable signal": Fact(
        "a signal made of the sampled tokens' log-probabilities, or of the teacher's likeliest ones, alone",
        _signal(attribute="recordable"),
        "set loss.signal=sampled without baseline and teacher_entropy, loss.signal=top_k with support=teacher, or "
        "another rollout.source",
    ),
    "teacher model": Fact("a teacher that is a model of its own", _own_weights, "give teacher.model"),
    "teacher here": Fact(
        "a teacher that writes, and one behind a server only scores",
        lambda c: "teacher.served" if c.teacher.is_served else None,
        "leave served out",
    ),
    "several teachers": Fact(
        "several teachers", lambda c: None if c.teacher.models else "no teacher.models", "give teacher.models"
    ),
    "one teacher": Fact("one teacher for all prompts", _several, "leave one of them out"),
    "fixed teacher": Fact(
        "a teacher that does not change with the student",
        lambda c: (
            None if c.teacher.is_model or c.teacher.weights.fixed else f"teacher.weights={c.teacher.weights.type}"
        ),
        "set teacher.weights=frozen, or give teacher.model",
    ),
    "plain view": Fact(
        "teacher.view=plain",
        lambda c: None if c.teacher.view.type == "plain" else f"teacher.view={c.teacher.view.type}",
        "set teacher.view=plain",
    ),
    "another teacher": Fact(
        "a teacher that differs from the student, or there is nothing to learn",
        _nothing_new,
        "give teacher.model, or teacher.view=hint, privileged, context or feedback",
    ),
    "student's rollouts": Fact("the student's own rollouts", _source, "set rollout.source=student"),
    "others' rollouts": Fact(
        "rollouts that the student did not write, as it would train on what it already does",
        lambda c: f"rollout.source={c.rollout.source.type}" if "student" in c.rollout.source.sources else None,
        "set rollout.source=references or teacher",
    ),
    "sampling as scored": Fact(
        "tokens drawn from the very distribution that the loss compares",
        _drawn_from,
        "set rollout.top_p=1, rollout.top_k=0, rollout.min_p=0 and rollout.temperature to loss.temperature",
    ),
    "student writes": Fact(
        "rollouts that the student writes",
        lambda c: None if "student" in c.rollout.source.sources else f"rollout.source={c.rollout.source.type}",
        "set rollout.source=student, or leave it out",
    ),
    "room after the prefix": Fact(
        "fewer tokens than rollout.max_new_tokens",
        lambda c: (
            f"rollout.source.tokens={c.rollout.source.tokens}, rollout.max_new_tokens={c.rollout.max_new_tokens}"
            if c.rollout.source.tokens >= c.rollout.max_new_tokens
            else None
        ),
        "lower rollout.source.tokens",
    ),
    "no recording": Fact(
        "rollouts made anew at each step",
        lambda c: "rollout.source=recorded" if c.rollout.source.first_prompts else None,
        "set rollout.source=student, or leave it out",
    ),
    "another signal": Fact(
        "another signal beside it, as loss.signal=reward is the reward already",
        lambda c: "loss.signal=reward" if c.loss.signal.role == "reward" else None,
        "leave loss.reward out",
    ),
    "rollouts elsewhere": Fact(
        "rollouts by servers, which write while the student is updated",
        lambda c: None if c.rollout.engine.elsewhere else f"rollout.engine={c.rollout.engine.type}",
        "set rollout.engine={vllm: URL}, or leave it out",
    ),
    "prompts in order": Fact(
        "prompts that depend on the step alone",
        lambda c: "experimental.curriculum" if c.experimental.curriculum else None,
        "leave one of them out",
    ),
    "older tokens": Fact(
        "a loss that weighs tokens of older weights by an importance ratio, or needs none",
        _signal(attribute="takes_older"),
        "set loss.signal=full or top_k, or loss.signal.estimator=policy_gradient",
    ),
    "several attempts": Fact(
        "several rollouts of each prompt",
        lambda c: None if c.rollout.rollouts_per_prompt > 1 else "rollout.rollouts_per_prompt=1",
        "set rollout.rollouts_per_prompt to 2 or more",
    ),
    "held-out prompts": Fact(
        "held-out prompts", lambda c: None if c.eval.prompts else "no eval.prompts", "give eval.prompts"
    ),
    "evaluation": EVALUATION,
    "diagnostics": Fact(
        "eval.diagnostics",
        lambda c: None if c.eval.diagnostics else "eval.diagnostics=0",
        "set eval.diagnostics, say 64",
    ),
    "text": Fact("rollouts of text", lambda c: None, ""),
}
"""Every fact by name."""

DATA_FACTS = {"rewards", "answers"}
"""Facts about the prompts themselves; checked after they are loaded."""


def check(config: Any, facts: Mapping[str, Fact] = FACTS) -> None:
    """Hold every need of a run file against the rest of it.

    Args:
        facts: those of the run's family.

    Raises:
        ValueError: the first need that is not met, as one sentence.
    """
    for key, name in config.all_needs():
        if name in DATA_FACTS:
            continue
        if name not in facts:
            raise ValueError(
                f"{named(config, key)} needs '{name}', which is no fact. Fix: name one of {', '.join(facts)}"
            )
        fact = facts[name]
        against = fact.lacks(config)
        if against is not None:
            raise ValueError(f"{named(config, key)} needs {fact.words} ({against}). Fix: {fact.fix}")


def named(config: Any, key: str) -> str:
    """A key with its value, where that is a value of an axis."""
    value = config
    for part in key.split("."):
        value = getattr(value, part)
    kind = value if isinstance(value, str) else getattr(value, "type", None)
    return f"{key}={kind}" if kind else key
