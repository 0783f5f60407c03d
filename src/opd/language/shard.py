"""Whether and how the processes of a run divide its models."""

from __future__ import annotations

from opd.config.diffusion import DiffusionConfig
from opd.config.run import RunConfig
from opd.distributed import World, check_alone, join
from opd.errors import ConfigError
from opd.models.language import device_named


def join_ranks(config: RunConfig | DiffusionConfig) -> World:
    """The processes of a run, which meet here.

    Raises:
        ConfigError: there are several, and the run takes one; or its weights cannot be divided as it asks.
    """
    if isinstance(config, DiffusionConfig):
        check_alone("a diffusion run")
        return World()
    world = join(device_named(config.device))
    if world.size > 1 and config.checkpoint.beside is True:
        raise ConfigError(
            "checkpoint.beside: several processes write a checkpoint together, between two steps. Fix: leave it out"
        )
    check_shard(config, world.size, adapter=config.lora is not None)
    return world


def check_shard(config: RunConfig, size: int, *, adapter: bool) -> int:
    """The number of groups that ``optimizer.shard`` asks for; 0 to divide nothing.

    Args:
        size: number of processes.
        adapter: whether the student is an adapter, whose base several models of the run share.

    Raises:
        ConfigError: the weights cannot be divided as it asks.
    """
    shard = config.optimizer.shard
    kept = {
        "lora": adapter,
        "compile": config.compile,
        "experimental.extrapolate": config.experimental.extrapolate is not None,
        "experimental.conflict": config.experimental.conflict,
    }
    whole = next((key for key, asked in kept.items() if asked), None)
    if shard is False or (shard == "auto" and (size == 1 or whole)):
        return 0
    if size == 1:
        raise ConfigError(
            "optimizer.shard: there is one process, which has all weights. Fix: start several with torchrun, or set "
            "optimizer.shard=auto"
        )
    if whole:
        raise ConfigError(f"optimizer.shard: weights cannot be divided with {whole}. Fix: set optimizer.shard=false")
    groups = 1 if isinstance(shard, (bool, str)) else shard.replicate
    if size % groups or groups == size:
        raise ConfigError(
            f"optimizer.shard.replicate: {size} processes cannot be divided into {groups} groups of at least two. Fix: "
            "set a divisor of their number below it"
        )
    return groups
