"""Several processes: step time and exchanged bytes at 1, 2 and 4, and both on paper for 8 and 64 H100s; memory; kills.

    python benchmarks/ranks.py              # measured here, then on paper
    python benchmarks/ranks.py paper        # on paper alone
    python benchmarks/ranks.py memory       # weights, gradients and moments of a rank, on a model where they dominate
    python benchmarks/ranks.py kills        # 20 times: a rank is killed at a random moment, and the run resumed

Measured: random Qwen3 models, whose answers end by chance, on processes that share the machine's cores, so seconds say
little about a cluster. Bytes are those that rank 0 hands to the system in a step, and beside them what the formulas
below expect. Processes are forked from this one, which has imported everything; the store that torchrun keeps is here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from kills import RUNS, moments, outcome
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from step import make_models
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import opd
from opd.api import load
from opd.axes.base import Objects
from opd.config.read import read
from opd.distributed import join, part_of
from opd.models.bundled import resolve
from opd.output.run_log import RunLog

KEYS: dict[str, Any] = {
    "prompts": {"task": "math", "split": "train", "limit": 256},
    "loss": {"divergence": "reverse_kl"},
    "rollout": {"prompts_per_step": 16, "max_new_tokens": 64},
    "optimizer": {"lr": 1e-4, "steps": 6},
    "checkpoint": {"every": 100},
    "log": [],
}


def written() -> int:
    """Bytes that this process has handed to the system so far, to sockets and files."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["wchar"])


class Steps:
    """A callback that keeps the times and bytes of each step."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []
        self.before, self.since = written(), time.perf_counter()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        now, then = written(), time.perf_counter()
        self.found.append({"seconds": then - self.since, "bytes": now - self.before, "tokens": metrics["tokens"]})
        self.before, self.since = now, then


class Ranks:
    """A function in several processes, each a rank of one run; a single one runs without ranks.

    Args:
        number: of processes.
        work: what each does with ``arguments``.
    """

    def __init__(self, number: int, work: Callable[..., None], *arguments: Any) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        env = {"WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port}
        context = multiprocessing.get_context("fork")
        self.processes = []
        for rank in range(number):
            own = {**env, "RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_USE_AGENT_STORE": True}
            self.processes.append(context.Process(target=as_rank, args=(own, work, arguments)))
            self.processes[-1].start()

    def kill(self, rank: int) -> bool:
        """Kill a rank by SIGKILL; whether it was running."""
        os.kill(self.processes[rank].pid or 0, signal.SIGKILL)
        self.processes[rank].join()
        return self.processes[rank].exitcode == -signal.SIGKILL

    def wait(self) -> bool:
        """Whether all have ended well."""
        for process in self.processes:
            process.join()
        return all(process.exitcode == 0 for process in self.processes)


def as_rank(env: dict[str, Any], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update({name: str(value) for name, value in env.items()})
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    work(*arguments)


def work(folder: Path, out: Path, keys: dict[str, Any]) -> None:
    """One run as a rank."""
    steps, tree = Steps(), {**KEYS, "student": str(folder / "student"), "teacher": {"model": str(folder / "teacher")}}
    opd.train(tree, {**keys, "out": str(out), "report": False}, callbacks=[steps])
    if os.environ["RANK"] == "0":
        (out / "steps.json").write_text(json.dumps(steps.found))


def measure(folder: Path) -> None:
    """The table of this machine."""
    sizes = {}
    for name in ("student", "teacher"):
        sizes[name] = sum(t.numel() for t in load_file(folder / name / "model.safetensors").values())
    table = Table("processes", "weights", "s a step", "tokens", "MB sent a step", "expected", title="Measured here")
    for number, shard in ((1, "auto"), (2, False), (2, "auto"), (4, "auto"), (4, {"replicate": 2})):
        out = folder / f"out-{number}-{shard}".replace(" ", "")
        if not Ranks(number, work, folder, out, {"optimizer.shard": shard}).wait():
            raise SystemExit(f"{number} processes failed, in {out}")
        found = json.loads((out / "steps.json").read_text())[1:]
        middle = {key: statistics.median(step[key] for step in found) for key in found[0]}
        groups = shard["replicate"] if isinstance(shard, dict) else 1
        inside = number // groups
        if number == 1:
            expected = 0.0
        elif shard is False:
            expected = 2 * 4 * sizes["student"] * (number - 1) / number
        else:  # float32: rollout, forward and backward pass of the student, one of the teacher, gradients
            part = (inside - 1) / inside
            gathers = 4 * (3 * sizes["student"] + sizes["teacher"]) * part
            expected = gathers + 4 * sizes["student"] * part
            expected += 2 * 4 * sizes["student"] / inside * (groups - 1) / groups
        table.add_row(
            str(number),
            "whole" if number == 1 or shard is False else f"divided{f' in {groups} groups' if groups > 1 else ''}",
            f"{middle['seconds']:.2f}",
            f"{middle['tokens']:.0f}",
            f"{middle['bytes'] / 1e6:.1f}",
            f"{expected / 1e6:.1f}",
        )
    Console().print(table)


@dataclass(frozen=True)
class Job:
    """A step on paper. Parameters in units, rates in units a second; an H100 SXM, bf16 compute, float32 masters."""

    student: float = 4e9
    teacher: float = 32e9
    vocabulary: float = 151_936
    width: float = 2560
    rollouts: int = 1024
    prompt: int = 300
    answer: int = 1500
    longest: int = 4096
    micro_tokens: int = 32_768
    flops: float = 0.4 * 989e12
    memory: float = 0.5 * 3.35e12
    inside: float = 0.7 * 450e9
    """Bytes a second and direction between GPUs of one machine (NVLink)."""
    outside: float = 0.7 * 50e9
    """The same between machines: 400 Gbit/s a GPU."""

    def step(self, gpus: int) -> dict[str, float]:
        """Seconds of compute and of exchange on each GPU, and the memory of weights and moments there, in GB."""
        tokens = self.rollouts * (self.prompt + self.answer) / gpus
        part, rate = (gpus - 1) / gpus, self.inside if gpus <= 8 else self.outside
        passes = max(tokens / self.micro_tokens, 1)
        # Decoding reads all weights for each position of the longest answer; rows share that.
        decode = self.longest * 2 * self.student / self.memory + self.rollouts / gpus * self.answer * (
            2 * self.student / self.flops
        )
        read = tokens * 2 * self.teacher / self.flops
        update = tokens * 8 * self.student / self.flops
        gather = (2 * self.student + passes * (2 * self.teacher + 2 * 2 * self.student)) * part
        reduce = passes * 4 * self.student * part
        head = 2 * self.vocabulary * self.width
        return {
            "rollouts, s": decode,
            "teacher, s": read,
            "update, s": update,
            "sent, GB": (gather + reduce) / 1e9,
            "exchange, s": (gather + reduce) / rate,
            "weights and moments, GB": (16 * self.student + 2 * self.teacher) / gpus / 1e9,
            "gathered, GB": max(2 * self.student, 2 * head + 4 * head) / 1e9,
        }


def paper() -> None:
    """The table for GPUs that were not rented."""
    job = Job()
    steps = {gpus: job.step(gpus) for gpus in (1, 8, 64)}
    table = Table("", *(f"{gpus} H100" for gpus in steps), title="On paper: 4 B student, 32 B teacher, 1,024 rollouts")
    for name in steps[1]:
        table.add_row(name, *(f"{step[name]:.1f}" for step in steps.values()))
    busy = {gpus: sum(step[f"{part}, s"] for part in ("rollouts", "teacher", "update")) for gpus, step in steps.items()}
    table.add_row("exchange / compute", *(f"{steps[gpus]['exchange, s'] / busy[gpus]:.0%}" for gpus in steps))
    Console().print(table)


LARGE = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 16}
"""A student of 113 M parameters, nearly all of them in its blocks."""
SHORT = {"prompts_per_step": 2, "max_new_tokens": 8}


def memory(folder: Path) -> None:
    """What a rank holds of the student, its frozen copy for the anchor, and a teacher of the same size."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano/math-base"))
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        ends = {"eos_token_id": 2, "pad_token_id": tokenizer.pad_token_id}
        config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=8, head_dim=64, **LARGE, **ends)
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    found = {}
    for number in (1, 2):
        if not Ranks(number, held, folder, folder / f"memory-{number}.json").wait():
            raise SystemExit(f"{number} processes failed")
        found[number] = json.loads((folder / f"memory-{number}.json").read_text())
    table = Table("MB of rank 0", "1 process", "2 processes", "ratio", title="Memory, float32")
    for name in found[1]:
        one, two = (found[number][name] for number in (1, 2))
        table.add_row(name, f"{one:.0f}", f"{two:.0f}", f"{two / one:.3f}")
    Console().print(table)


def held(folder: Path, file: Path) -> None:
    """One short step as a rank, and the sizes of what it holds then."""
    keys = {
        "rollout": SHORT,
        "optimizer": {"lr": 1e-4, "steps": 1},
        "loss": {"divergence": "reverse_kl", "anchor": 0.1},
    }
    models = {"student": str(folder / "student"), "teacher": {"model": str(folder / "teacher")}}
    config = read({**KEYS, **keys, **models, "out": str(file.with_suffix("")), "report": False})
    world = join("cpu")
    found: dict[str, float] = {}
    before = private()
    with world.together():
        with peak(found, "peak while loading", before):
            run: Any = load(config, Objects())
            loop = run.assemble(RunLog(None))
        optimizer = loop.optimizer

        def count(*arguments: Any) -> None:
            found["gradients"] = size([p.grad for p in optimizer.named.values() if p.grad is not None])

        optimizer.adamw.register_step_pre_hook(count)
        with peak(found, "peak of a step", before):
            loop.checkpoints.every = 10**6
            loop._step(0)
        student, context = loop.student.model, run.context
        found["student"] = size(list(student.parameters()))
        found["moments"] = size([t for t in optimizer.tensors().values() if t.ndim])
        found["frozen copy and teacher"] = sum(
            size(list(model.model.parameters())) for model in (context.initial, context.teacher_model)
        )
        found["student, gradients, moments"] = found["student"] + found["gradients"] + found["moments"]
        found["all of it"] = found["student, gradients, moments"] + found["frozen copy and teacher"]
        with peak(found, "peak of a checkpoint", before):
            loop.state.step = 1
            loop.checkpoints.save(loop.run_state, last=True)
    if world.rank == 0:
        file.write_text(json.dumps(found))


def size(tensors: list[torch.Tensor]) -> float:
    """MB of this rank's parts; tied tensors count once."""
    parts = {part_of(t).data_ptr(): part_of(t) for t in tensors}
    return sum(part.numel() * part.element_size() for part in parts.values()) / 1e6


def private() -> float:
    """MB of memory that belongs to this process alone; pages of files that are mapped do not count."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024 / 1e6


@contextmanager
def peak(found: dict[str, float], name: str, before: float) -> Iterator[None]:
    """The most private memory inside the block, beyond what there was before."""
    ended, most = threading.Event(), [0.0]

    def watch() -> None:
        while not ended.wait(0.005):
            most[0] = max(most[0], private())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        found[name] = max(most[0], private()) - before


KILLED = ("averaged teacher", "lora", "recovery", "curriculum")
"""Runs of ``benchmarks/kills.py``."""


def kills(folder: Path, times: int = 20) -> None:
    """Kill a rank at a random moment, resume, and compare with a run that nothing has disturbed.

    Compared are weights, moments and averages, the result, and the metrics of each step.
    """
    drawn, equal, killed, whole = random.Random(0), 0, 0, {}
    for name in KILLED:
        assert Ranks(2, train, name, folder / f"{name}-whole").wait()
        whole[name] = outcome(folder / f"{name}-whole")
    for number, name in enumerate(cycle(KILLED)):
        if killed == times:
            break
        out, rank = folder / f"killed-{number}", drawn.randrange(2)
        job = Ranks(2, train, name, out)
        for _ in moments(out, len(whole[name]["metrics.jsonl"]), drawn):
            time.sleep(0.01)
        was_running = job.kill(rank)
        job.wait()
        had = sorted(path.name for path in out.glob("checkpoints/[0-9]*"))
        assert Ranks(2, train, name, out).wait(), f"{name}, in {out}"
        same = outcome(out) == whole[name]
        killed, equal = killed + was_running, equal + (was_running and same)
        what = f"rank {rank} killed, newest checkpoint {had[-1] if had else 'none'}" if was_running else "too late"
        print(f"{name}: {what}: {'equal' if same else 'DIFFERENT'}", flush=True)
        shutil.rmtree(out)
    print(f"{equal} of {killed} killed runs ended equal to the undisturbed one, to the last bit")


def train(name: str, out: Path) -> None:
    """A run, begun or resumed, as a rank."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    recipe, overrides = RUNS[name]
    opd.train(recipe, {**overrides, "out": str(out)}, resume=True)


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if asked == ["memory"]:
            memory(folder)
        elif asked == ["kills"]:
            kills(folder)
        else:
            if not asked:
                make_models(folder)
                measure(folder)
            paper()


if __name__ == "__main__":
    main()
