"""Runs in several processes, as torchrun starts them, and the same runs in one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import opd
from opd.api import load
from opd.axes.base import Objects
from opd.config.read import read, recipe_names
from opd.distributed import join, part_of
from opd.engines import drawing
from opd.engines.hf import HFEngine
from opd.engines.rows import Draw, GrowingRows
from opd.models.weights import trained
from opd.output.provenance import run_id
from opd.output.run_log import RunLog
from opd.training.optimizer import Optimizer
from opd.types import Generation, Sampling

SMALL: dict[str, Any] = {
    "optimizer.steps": 3,
    "rollout.prompts_per_step": 6,
    "prompts.limit": 96,
    "eval.prompts": None,
    "report": False,
    "log": [],
    "checkpoint.every": 3,
}

LONG = {"grpo", "sdpo", "kdrl", "opd-rlaif", "hint-rl"}
"""Recipes that need answers which are right; the others are cut short."""


def language_recipes() -> list[str]:
    """Names of the recipes of language models."""
    return [name for name in recipe_names() if read(name).family == "language"]


class _Draws:
    """Draws the tokens of a context with random numbers of its own, whatever else is in the batch."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.rows: Any = None

    def generate(
        self,
        engine: HFEngine,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        seed: int,
        **settings: Any,
    ) -> list[Generation]:
        known, seen = [zlib.crc32(json.dumps(list(context)).encode()) for context in contexts], Counter[int]()
        self.seeds = []
        for one in known:
            seen[one] += 1
            self.seeds.append((seed * 1009 + one) * 1009 + seen[one])
        return GENERATE(engine, contexts, max_new_tokens, seed=seed, **settings)

    def advance(self, rows: GrowingRows, draw: Draw) -> list[bool]:
        self.rows = rows
        return ADVANCE(rows, draw)

    def points(self, number: int, sampling: Sampling, generator: torch.Generator) -> Tensor | None:
        if sampling.temperature == 0:
            return None
        places = zip(self.rows.index, self.rows.count_B.tolist(), strict=True)
        return torch.tensor([[Random(self.seeds[n] * 1009 + count).random()] for n, count in places]).double()


GENERATE, ADVANCE, POINTS = HFEngine.generate, GrowingRows.advance, drawing.points


@contextmanager
def tokens_of_their_own() -> Iterator[None]:
    """Let the tokens of a context depend on nothing else in the batch, so that any division of it draws the same."""
    draws = _Draws()
    HFEngine.generate = lambda engine, *a, **k: draws.generate(engine, *a, **k)  # type: ignore[method-assign]
    GrowingRows.advance = lambda self, draw: draws.advance(self, draw)  # type: ignore[method-assign]
    drawing.points = draws.points
    try:
        yield
    finally:
        HFEngine.generate = GENERATE  # type: ignore[method-assign]
        GrowingRows.advance = ADVANCE  # type: ignore[method-assign]
        drawing.points = POINTS


def run_recipe(name: str, out: Path, changes: Mapping[str, Any] | None = None, *, resume: bool = False) -> None:
    """The first steps of a recipe, with a checkpoint after the last."""
    torch.set_num_threads(1)
    keys = SMALL | {"out": str(out)} | dict(changes or {})
    if name not in LONG:
        keys.setdefault("rollout.max_new_tokens", 24)
    if name == "lightning":
        keys["rollout.source.prompts"] = 12
    with tokens_of_their_own():
        opd.train(name, keys, resume=resume)


def losses(out: Path) -> list[dict[str, float]]:
    """The metrics of each step."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["train"] for row in rows if "train" in row]


def start_ranks(number: int, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start ``python ARGUMENTS`` in several processes by torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = str(Path(__file__).parents[1])
    paths = [tests, str(Path(opd.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}", f"--master-port={port}"]
    return subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_back(out: Path, to: Path) -> None:
    """Put a run's newest checkpoint into its models, and write what they then hold, whole, as one file."""
    config = read(json.loads((out / "run.json").read_text()))
    world = join("cpu")
    with world.together():
        run = load(config, Objects())
        loop = run.assemble(RunLog(None))
        loop.checkpoints.run = run_id(out)
        loop.restore()
        model = loop.student.model
        tensors = world.whole({**trained(model), **loop.optimizer.tensors()})
        bytes_ = [part_of(t).numel() * t.element_size() for t in [*trained(model).values(), *moments(loop.optimizer)]]
        if world.rank == 0:
            save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, to)
            to.with_suffix(".json").write_text(json.dumps({"bytes": sum(bytes_), "step": loop.state.step}))


def moments(optimizer: Optimizer) -> list[Tensor]:
    """The state of AdamW that has the shape of a parameter."""
    return [tensor for name, tensor in optimizer.tensors().items() if not name.endswith(".step")]


def main() -> None:
    """Run the jobs of a JSON file, one after the other: a list of {recipe, out, changes} or {read, to}."""
    for job in json.loads(Path(sys.argv[1]).read_text()):
        if "read" in job:
            read_back(Path(job["read"]), Path(job["to"]))
        else:
            run_recipe(job["recipe"], Path(job["out"]), job.get("changes"), resume=job.get("resume", False))


if __name__ == "__main__":
    main()
