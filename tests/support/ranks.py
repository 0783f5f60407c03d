"""Runs in several processes, as torchrun starts them, and the same runs in one."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import opd
from opd.api import load
from opd.axes.base import Objects
from opd.config.read import read, recipe_names
from opd.distributed import in_parts, join, mesh_of, part_of, whole_of
from opd.distributed.shards import gathered
from opd.engines import drawing
from opd.engines.hf import HFEngine
from opd.engines.rows import Draw, GrowingRows
from opd.models.loading import load as load_model
from opd.models.packing import packs
from opd.models.weights import trained
from opd.output.provenance import run_id
from opd.output.run_log import RunLog
from opd.training.optimizer import Optimizer
from opd.types import Generation, Sampling
from support.models import make_model

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


def start_ranks(number: int, *arguments: str) -> subprocess.Popen[str]:
    """Start ``python ARGUMENTS`` in several processes by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}", f"--master-port={_port()}"]
    return subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _paths()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Forked:
    """A function in several processes, as torchrun starts them, but forked from one that has imported everything.

    Args:
        number: of processes.
        work: what each does with ``arguments``.
        folder: gets what each writes on stderr.
    """

    def __init__(
        self,
        number: int,
        work: Callable[..., None],
        *arguments: Any,
        folder: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        os.environ["PYTHONPATH"] = _paths()  # the server reads it when the first process is started
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # outlives all, as torchrun's
        same = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port)}
        same |= {"TORCHELASTIC_USE_AGENT_STORE": "True", **(env or {})}
        self.files = [folder / f"stderr-{rank}" for rank in range(number)]
        self.processes = []
        for rank, file in enumerate(self.files):
            own = {**same, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            self.processes.append(context.Process(target=_as_rank, args=(own, file, work, arguments)))
            self.processes[-1].start()

    def wait(self, seconds: float = 400) -> tuple[list[int | None], str]:
        """The exit status of each process, and what all wrote on stderr."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0))
        status = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return status, "".join(file.read_text() for file in self.files)


def _as_rank(env: Mapping[str, str], errors: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(env)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    work(*arguments)


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _paths() -> str:
    tests = str(Path(__file__).parents[1])
    return os.pathsep.join([tests, str(Path(opd.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


def command_line(*arguments: str) -> None:
    """``opd ARGUMENTS``."""
    sys.argv = ["opd", *arguments]
    runpy.run_module("opd", run_name="__main__")


def read_back(out: Path, to: Path) -> None:
    """Put a run's newest checkpoint into its models, and write what they then hold, whole, as one file."""
    config = read({**json.loads((out / "run.json").read_text()), "out": str(out)})
    world = join("cpu")
    with world.together():
        run = load(config, Objects())
        loop = run.assemble(RunLog(None))
        loop.checkpoints.run = run_id(out)
        loop.restore()
        model = loop.student.model
        tensors = {**trained(model), **loop.optimizer.tensors()}
        bytes_ = [part_of(t).numel() * t.element_size() for t in [*trained(model).values(), *moments(loop.optimizer)]]
        world.write(lambda named, path: save_file({n: t.detach().clone() for n, t in named.items()}, path), tensors, to)
        if world.rank == 0:
            to.with_suffix(".json").write_text(json.dumps({"bytes": sum(bytes_), "step": loop.state.step}))


def moments(optimizer: Optimizer) -> list[Tensor]:
    """The state of AdamW that has the shape of a parameter."""
    return [tensor for name, tensor in optimizer.tensors().items() if not name.endswith(".step")]


def run_jobs(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Run jobs one after the other: {recipe, out, changes, resume}, each of the last two if there is one."""
    for job in jobs:
        run_recipe(job["recipe"], Path(job["out"]), job.get("changes"), resume=job.get("resume", False))


def decode(folder: Path) -> None:
    """Generate with a divided model, in two ways: with its gathered weights, and with a copy in bfloat16.

    Each rank generates for prompts of its own, so that they decode another number of steps. Each writes its tokens, and
    those of the same model before it was divided.
    """
    torch.set_num_threads(1)
    world = join("cpu")
    with world.together():
        contexts = [tuple(range(3, 6 + n)) for n in range(2 + 3 * world.rank)]
        settings: dict[str, Any] = {"sampling": Sampling(), "stop_ids": frozenset({2}), "seed": world.rank}
        rough = replace(make_model(0, tied=False), autocast=torch.bfloat16)
        models = [make_model(0), rough]
        engines = [HFEngine(models[0]), HFEngine(models[1], copied=True)]
        assert engines[1].weights.running is not rough
        budget = [8 + 16 * world.rank] * len(contexts)
        whole = [engine.generate(contexts, budget, **settings) for engine in engines]
        for model in models:
            model.divide(mesh_of("cpu", world.size, 1))
        found = []
        for model, engine in zip(models, engines, strict=True):
            with gathered([model.model]):
                engine.sync()
                found.append(engine.generate(contexts, budget, **settings))
        divided = [all(part_of(p) is not p for p in model.model.parameters()) for model in models]
        # After an update the copy has the new weights.
        with torch.no_grad():
            for parameter in rough.model.parameters():
                parameter.mul_(1.5)
        with gathered([rough.model]):
            engines[1].sync()
        live = [whole_of(p).detach().bfloat16() for p in rough.model.parameters()]
        synced = all(map(torch.equal, engines[1].weights.running.model.parameters(), live))
        equal = [[one.ids for one in a] == [one.ids for one in b] for a, b in zip(whole, found, strict=True)]
        facts = {"equal": equal, "divided": divided, "synced": synced}
        (folder / f"decoded-{world.rank}.json").write_text(json.dumps(facts))


def load_in_parts(folder: Path) -> None:
    """Load a model of which each rank reads a part. Each writes its share of the weights, and whether it is the model.

    The states of the model that is read whole are compared to the last bit.
    """
    torch.set_num_threads(1)
    world = join("cpu")
    with world.together(), torch.no_grad():
        divided = load_model("nano/math-teacher", key="teacher", parts=in_parts("cpu", world.size, 1))
        parameters = list(divided.model.parameters())
        whole = load_model("nano/math-teacher", key="teacher")
        ids = torch.arange(3, 20 + world.rank)[None]
        states = [model.hidden(ids, torch.ones_like(ids)) for model in (divided, whole)]
        facts = {
            "share": sum(part_of(p).numel() for p in parameters) / sum(p.numel() for p in parameters),
            "equal": torch.equal(*states) and torch.equal(divided.head_VD, whole.head_VD),
            "packs": packs(divided),
        }
        (folder / f"loaded-{world.rank}.json").write_text(json.dumps(facts))


def main() -> None:
    """Run the jobs of a JSON file; see ``run_jobs``."""
    run_jobs(json.loads(Path(sys.argv[1]).read_text()))


if __name__ == "__main__":
    main()
