"""What ``opd doctor`` says about servers: the commands that start them, and what answers there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from opd.axes.engines.vllm import Vllm
from opd.config.run import BaseRun, RunConfig
from opd.config.served import ServedConfig
from opd.models.bundled import resolve

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


def cost(run: Any, *, tokens: int, seconds: float) -> Iterator[str]:
    """A line about what scoring some tokens took, if a server scored them."""
    received = sum(one.received for one in run.servers)
    if received and tokens:
        yield (
            f"served    {tokens} tokens scored in {seconds:.2f} s, {received / tokens:.0f} bytes a token; a run "
            "does other work meanwhile"
        )
