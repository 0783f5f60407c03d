"""What ``opd doctor`` says about servers: the commands that start them, and what answers there."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from opd.axes.engines.vllm import Vllm
from opd.config.run import BaseRun, RunConfig
from opd.config.served import ServedConfig
from opd.losses import token_logprobs
from opd.models.bundled import resolve
from opd.signals import FullSignal
from opd.types import Signal

PASSES = 3
"""An update takes about this number of the student's forward passes."""

POOLER = json.dumps({"task": "token_embed", "use_activation": False})


def commands(config: BaseRun) -> Iterator[str]:
    """A line for each server that a run file names, with the command that starts it."""
    if not isinstance(config, RunConfig):
        return
    teacher = config.teacher
    served = {"teacher": (teacher.model, teacher.served)}
    served |= {name: (one.model, one.served) for name, one in (teacher.models or {}).items()}
    for name, (model, settings) in served.items():
        if settings and model:
            for url in settings.url:
                yield f"server    {name} at {url}: {_pooling(model, url, settings)}"
                yield f"          or: opd serve {_named(model, settings)} --port {_port(url)}"
    engine = config.rollout.engine
    if isinstance(engine, Vllm):
        for url in engine.url:
            yield f"server    rollouts at {url}: {_rollouts(config, engine, url)}"


def _pooling(model: str, url: str, settings: ServedConfig) -> str:
    options = ["--runner", "pooling", "--convert", "embed", "--pooler-config", POOLER]
    return _command(model, url, settings.name, options)


def _rollouts(config: RunConfig, engine: Vllm, url: str) -> str:
    options = ["--enable-scale-out", "--logprobs-mode", "processed_logprobs"]
    variables = "VLLM_SERVER_DEV_MODE=1 "
    if config.lora:
        options += ["--enable-lora", "--max-lora-rank", str(config.lora.rank)]
        variables += "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 "
    return variables + _command(config.student, url, engine.name, options)


def _command(model: str, url: str, name: str | None, options: list[str]) -> str:
    given = ["--served-model-name", name] if name else []
    return shlex.join(["vllm", "serve", resolve(model), "--port", str(_port(url)), *given, *options])


def _named(model: str, settings: ServedConfig) -> str:
    return shlex.quote(f"{settings.name}={model}" if settings.name else model)


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def found(run: Any) -> Iterator[str]:
    """A line for each client of a loaded run, whose servers have been checked.

    Args:
        run: the run context.
    """
    for key, model in run.others().items():
        if model.is_served:
            server = model.server
            kind = "opd serve" if server.labelled else "vLLM pooling"
            label = f", weights {server.served.weights}" if server.labelled else ", weights known by a probe"
            yield (
                f"served    {key}: {kind}, model '{server.served.name}', up to {model.max_length} tokens, "
                f"{len(server.requests.urls)} address{'es' if len(server.requests.urls) > 1 else ''}{label}"
            )
    if isinstance(run.config.rollout.engine, Vllm):
        engine = run.engine(run.student)
        yield f"served    rollout.engine: vLLM, model '{engine.name}', up to {engine.max_length} tokens"
    if run.servers:
        longest = max(run.training.lengths) + run.config.rollout.max_new_tokens
        yield f"          the longest sequence of this run has {longest} tokens: --max-model-len {longest} is enough"


def fits(signal: Signal) -> Iterator[str]:
    """A warning if states of a server times the head that is here do not predict the student's tokens.

    Another model of the same width and tokenizer gives states that this head makes nothing of.
    """
    if not isinstance(signal, FullSignal) or not len(signal):
        return
    head_VD = signal.head_VD
    loss = -float(token_logprobs(signal.hidden_TD.to(head_VD), head_VD, signal.token_T).mean())
    if loss >= (chance := math.log(len(head_VD))):
        yield (
            f"WARNING   the server's states times the teacher's head predict the student's tokens at {loss:.2f} nats, "
            f"where chance is {chance:.2f}. Fix: serve the model that teacher.model names"
        )


def cost(run: Any, *, tokens: int, rollout_s: float, teacher_s: float, pass_s: float) -> Iterator[str]:
    """Lines about what servers cost for some rollouts and their tokens; none without servers.

    Args:
        rollout_s, teacher_s, pass_s: seconds for the rollouts, for their signal and for one forward pass.
    """
    scoring = [model.server.requests for model in run.others().values() if model.is_served]
    if scoring and tokens:
        size = sum(one.received for one in scoring) / tokens
        yield f"served    {tokens} tokens scored in {teacher_s:.2f} s, {size:.0f} bytes a token"
    if run.servers:
        written_there = isinstance(run.config.rollout.engine, Vllm)
        step_s = rollout_s + teacher_s + PASSES * pass_s
        share = (rollout_s * written_there + teacher_s * bool(scoring)) / step_s
        yield (
            f"waiting   for servers: {share:.0%} of a step if nothing is hidden (rollouts {rollout_s:.2f} s, teacher "
            f"{teacher_s:.2f} s, update about {PASSES * pass_s:.2f} s); the teacher is asked while others are still "
            f"written{', and rollout.ahead=1 hides rollouts behind updates' if written_there else ''}"
        )
