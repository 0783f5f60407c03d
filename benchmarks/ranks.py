"""Several processes: step time and exchanged bytes at 1, 2 and 4, and both on paper for 8 and 64 H100s.

    python benchmarks/ranks.py              # measured here, then on paper
    python benchmarks/ranks.py paper        # on paper alone
    python benchmarks/ranks.py kills        # 20 times: a rank is killed at a random moment, and the run resumed

Measured: a random Qwen3 student and teacher, whose answers end by chance, on processes that share the machine's cores,
so seconds say little about a cluster. Bytes are those that rank 0 hands to the system in a step, and beside them what
the formulas below expect.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from step import make_models

import opd

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


def ranks(number: int, *arguments: str) -> subprocess.Popen[bytes]:
    """This script in several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}", f"--master-port={port}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen([*start, __file__, *arguments], env=env, stderr=subprocess.DEVNULL)


def work(folder: Path, out: Path, keys: str) -> None:
    """One run, begun or resumed, as a rank."""
    steps, tree = Steps(), {**KEYS, "student": str(folder / "student"), "teacher": {"model": str(folder / "teacher")}}
    changes = json.loads(keys)
    opd.train(tree, {**changes, "out": str(out), "report": False}, resume=True, callbacks=[steps])
    if os.environ.get("RANK", "0") == "0":
        (out / "steps.json").write_text(json.dumps(steps.found))


def measure(folder: Path) -> None:
    """The table of this machine."""
    sizes = {}
    for name in ("student", "teacher"):
        sizes[name] = sum(t.numel() for t in load_file(folder / name / "model.safetensors").values())
    table = Table("processes", "weights", "s a step", "tokens", "MB sent a step", "expected", title="Measured here")
    for number, shard in ((1, "auto"), (2, False), (2, "auto"), (4, "auto"), (4, {"replicate": 2})):
        out = folder / f"out-{number}-{shard}".replace(" ", "")
        if ranks(number, "work", str(folder), str(out), json.dumps({"optimizer.shard": shard})).wait():
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


def kills(folder: Path, times: int = 20) -> None:
    """Kill a rank at a random moment, resume, and compare with a run that nothing has disturbed."""
    keys = json.dumps({"optimizer.steps": 8, "checkpoint.every": 2})
    whole = folder / "whole"
    started = time.monotonic()
    assert ranks(2, "work", str(folder), str(whole), keys).wait() == 0
    lasts, drawn, equal = time.monotonic() - started, random.Random(0), 0
    for number in range(times):
        out = folder / f"killed-{number}"
        job = ranks(2, "work", str(folder), str(out), keys)
        time.sleep(drawn.uniform(0.3, 0.95) * lasts)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        for victim in [int(child) for child in children if f"RANK={drawn.randrange(2)}" in environment(child)][:1]:
            os.kill(victim, signal.SIGKILL)
        job.wait()
        assert ranks(2, "work", str(folder), str(out), keys).wait() == 0
        names = ("model.safetensors", "checkpoints/000008/optimizer.safetensors")
        same = all((out / name).read_bytes() == (whole / name).read_bytes() for name in names)
        equal += same
        print(f"{number + 1}: {'equal' if same else 'DIFFERENT'}", flush=True)
    print(f"{equal} of {times} runs are equal to the undisturbed one, to the last bit")


def environment(process: str) -> list[str]:
    """The environment that a process was started with."""
    return Path(f"/proc/{process}/environ").read_text().split("\0")


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["work"]:
        work(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if sys.argv[1:] != ["paper"]:
            make_models(folder)
        if sys.argv[1:] == ["kills"]:
            kills(folder)
            return
        if not sys.argv[1:]:
            measure(folder)
    paper()


if __name__ == "__main__":
    main()
