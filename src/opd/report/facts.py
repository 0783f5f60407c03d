"""The settings of a language run in words, and where its time went. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opd.axes.base import AXES, AxisValue
from opd.output.run_folder import leaves

Tree = dict[str, Any]

SECONDS = "_s"
"""End of the names of metrics that are seconds of a step."""

PARTS = {
    "rollout_s": "rollouts",
    "teacher_s": "teacher",
    "update_s": "update",
}
"""Parts of a step in the order of the loop, by metric."""


def shipped(axis: str, value: Any) -> type[AxisValue] | None:
    """The shipped class of a value in ``run.json``; None for a user's own."""
    return AXES[axis].get(str((value or {}).get("type")))


def teaching(config: Mapping[str, Any]) -> str:
    """A sentence on what scored the rollouts, in the words of the axis values."""
    teacher, loss = config.get("teacher") or {}, config.get("loss") or {}
    signal = shipped("loss.signal", loss.get("signal"))
    if signal is not None and (sentence := getattr(signal, "without_teacher", "")):
        return str(sentence)
    several = list(teacher.get("models") or {})
    weights = shipped("teacher.weights", teacher.get("weights"))
    own = getattr(weights, "report", "a teacher")
    who = f"another model ({teacher['model']})" if teacher.get("model") else own
    who = f"{len(several)} teachers ({', '.join(several)})" if several else who
    sees = getattr(shipped("teacher.view", teacher.get("view")), "report", "with a view of its own")
    return f"The student generated the rollouts; every token was scored by {who}, {sees}."


def facts(config: Mapping[str, Any], label: str, *, adapter: bool | None = None) -> Iterator[tuple[str, str]]:
    """Name and value of each setting that says who took part and how.

    Args:
        label: name of the main loss.
        adapter: whether a student without ``lora`` is an adapter, which is then the part that trains; None: unknown.
    """
    teacher, loss = config.get("teacher") or {}, config.get("loss") or {}
    if config.get("student"):
        yield "student", ", ".join([str(config["student"]), *_trained(config.get("lora"), adapter)])
    if not getattr(shipped("loss.signal", loss.get("signal")), "without_teacher", ""):
        yield from _teachers(teacher)
    yield from _rewards(config.get("prompts") or {})
    yield "loss", ", ".join([label, *_beside(loss)])
    yield from _step(config.get("rollout") or {}, config.get("optimizer") or {})
    for key, value in leaves(config):
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            yield "server", f"{value} ({key})"


def _trained(lora: Mapping[str, Any] | None, adapter: bool | None) -> Iterator[str]:
    if lora:
        yield f"adapters of rank {lora.get('rank')} are trained (LoRA)"
    elif adapter is not None:
        yield "an adapter that is trained further (LoRA)" if adapter else "all weights are trained"


def _teachers(teacher: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, expert in (teacher.get("models") or {}).items():
        domains = expert.get("domains") if isinstance(expert, Mapping) else None
        on = f", on prompts of {', '.join(map(str, domains))}" if domains else ""
        yield "teacher", f"{name}: {expert.get('model') if isinstance(expert, Mapping) else expert}{on}"
    if not teacher.get("models"):
        weights = shipped("teacher.weights", teacher.get("weights"))
        yield "teacher", str(teacher.get("model") or getattr(weights, "report", "a teacher of its own"))
    if view := teacher.get("view"):
        yield "the teacher reads", getattr(shipped("teacher.view", view), "report", "a view of its own")
    author = (view or {}).get("author") or {}
    if author:
        by = ", ".join(str(author[key]) for key in ("model", "url") if isinstance(author.get(key), str))
        yield "hints by", f"{author.get('type')}{f' ({by})' if by else ''}"


def _rewards(prompts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if reward := prompts.get("reward"):
        named = reward if isinstance(reward, str) else ", ".join(str(v) for _, v in leaves(reward) if v is not None)
        yield "reward", named


def _beside(loss: Mapping[str, Any]) -> Iterator[str]:
    """The other terms of the loss with their weights."""
    for key, words in (("anchor", "KL to the initial weights"), ("reward", "rewards"), ("sft", "cross-entropy")):
        term = loss.get(key)
        weight = term.get("weight") if isinstance(term, Mapping) else term
        if isinstance(weight, int | float) and weight:
            yield f"{_number(weight)} × {words}"


def _step(rollout: Mapping[str, Any], optimizer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if prompts := rollout.get("prompts_per_step"):
        times = rollout.get("rollouts_per_prompt", 1)
        each = f" × {times} rollouts" if times != 1 else ""
        rate = f", learning rate {_number(optimizer['lr'])}" if optimizer.get("lr") else ""
        yield "a step", f"{prompts} prompts{each}, at most {rollout.get('max_new_tokens')} tokens{rate}"
    if (engine := (rollout.get("engine") or {}).get("type", "hf")) != "hf":
        yield "rollouts by", str(engine)


def _number(value: float) -> str:
    return f"{value:g}".replace("e-0", "e-")


def times(steps: Sequence[Mapping[str, float]], seconds: float | None) -> list[Tree]:
    """Where the time of a run went, as parts with ``name`` and ``seconds``.

    Args:
        steps: metrics of the training steps.
        seconds: of the whole run; None while it runs.
    """
    names = list(dict.fromkeys(name for metrics in steps for name in metrics if name.endswith(SECONDS)))
    names = [*(n for n in PARTS if n in names), *(n for n in names if n not in PARTS and not n.endswith("per_s"))]
    found: list[Tree] = [
        {"name": PARTS.get(name, name.removesuffix(SECONDS).replace("_", " ")), "seconds": taken}
        for name in names
        if (taken := sum(float(metrics.get(name) or 0.0) for metrics in steps)) > 0
    ]
    rest = (seconds or 0.0) - sum(part["seconds"] for part in found)
    if found and rest > 0:
        found.append({"name": "evaluation, report, checkpoints", "seconds": rest})
    return found


def differing(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The keys in which run files differ, each with its value in every run; None where a run lacks it."""
    trees = [dict(leaves({k: v for k, v in config.items() if k not in ("out", "method")})) for config in configs]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    rows = [(key, [tree.get(key) for tree in trees]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]
