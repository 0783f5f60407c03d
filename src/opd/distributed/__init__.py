"""One run in several processes, its ranks, which torchrun starts. The only importer of ``torch.distributed``.

Every rank runs the same loop over the same rollouts, so all decisions are the same everywhere. Divided is the work that
counts: each rank generates the rollouts of its share of the prompts and reads the tokens of its share of the rollouts.
One process is a ``World`` of one rank, which divides nothing.
"""

from opd.distributed.ranks import check_alone, current, join
from opd.distributed.shards import (
    READ,
    add_read,
    divide,
    divided_as,
    in_parts,
    is_divided,
    mesh_of,
    part_of,
    release,
    whole_of,
)
from opd.distributed.world import World

__all__ = [
    "READ",
    "World",
    "add_read",
    "check_alone",
    "current",
    "divide",
    "divided_as",
    "in_parts",
    "is_divided",
    "join",
    "mesh_of",
    "part_of",
    "release",
    "whole_of",
]
