"""Kill runs at random moments and resume them: what they end with must equal a run that was left alone, bit for bit.

    python benchmarks/kills.py [--kills 100] [--only lora]

Language runs with an averaged teacher, with recovery, with LoRA, with checkpoints beside the steps, and denoising runs
take the kills in turn; each is killed with SIGKILL once or twice. Every tenth trial is a pipeline. Weights, optimizer,
averaged teacher, metrics and result are compared. Runs are forked from a process that has imported everything, so that
a kill costs a few seconds.

    python benchmarks/kills.py --only servers --kills 20

A run whose teacher is opd serve and whose rollouts are written ahead by a server: vLLM where OPD_VLLM_PYTHON names an
interpreter with it, otherwise a stand-in. The tokens that each step trained on are compared as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import yaml
from safetensors.torch import load_file

import opd
import opd.diffusion.run
from opd.models.loading import load
from opd.pipelines.run import pipeline
from opd.rollouts.ahead import Ahead
from opd.servers.push import FolderPush
from opd.types import Prompt, Rollout
from support.rollout_server import RolloutServer
from support.vllm_server import PYTHON, ROLLING, running

HELD_OUT = {"eval.prompts.limit": 16, "eval.every": 3, "eval.diagnostics": 0, "eval.max_new_tokens": 24}
COMMON = {"checkpoint.every": 3, "threads": 1, "log": []}
LANGUAGE = {**COMMON, **HELD_OUT, "optimizer.steps": 12, "rollout.prompts_per_step": 8, "rollout.max_new_tokens": 24}
IMAGES = {
    **COMMON,
    "optimizer.steps": 8,
    "rollout.prompts_per_step": 6,
    "rollout.steps": 2,
    "eval.prompts": None,
    "report.prompts": 2,
}

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "averaged teacher": ("hint", {**LANGUAGE, "teacher.weights": {"type": "ema", "decay": 0.9}}),
    "lora": ("hint", {**LANGUAGE, "lora.rank": 4, "optimizer.lr": 2e-3}),
    "recovery": ("opd", {**LANGUAGE, "optimizer.lr": 0.3, "optimizer.warmup": 0, "guards.recover": {}}),
    "beside": ("hint", {**LANGUAGE, "checkpoint.every": 1, "checkpoint.beside": True, "guards.recover": {}}),
    "curriculum": ("grpo", {**LANGUAGE, "experimental.curriculum": {}, "eval.prompts": None}),
    "diffusion": ("diffusion-opd", {**IMAGES, "loss.step_weights": None}),
    "diffusion, all weights": ("d-opsd", {**IMAGES, "lora": None, "teacher.weights": {"type": "ema", "decay": 0.9}}),
}
"""Recipes with overrides, by name."""

PIPELINE, SERVERS = "pipeline", "servers"


def stages() -> dict[str, Any]:
    """Two teachers, a student of both, their mean and its accuracy."""
    train = {**LANGUAGE, "run": "opd", "optimizer.steps": 6, "guards": {"drop": 1.0, "below_start": 1.0}}
    measured = {"prompts": {"task": "math", "split": "test", "limit": 16}, "max_new_tokens": 24}
    return {
        "one": {**train, "seed": 1},
        "two": {**train, "seed": 2},
        "student": {**train, "student": "stage:two", "teacher": {"model": "stage:one"}},
        "mean": {"average": ["stage:one", "stage:student"]},
        "scores": {"eval": ["stage:student", "stage:mean"], **measured},
    }


@contextmanager
def servers(folder: Path) -> Iterator[None]:
    """A teacher and a rollout server in processes of their own, and the run that needs them."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "opd", "serve", "nano/math-teacher", "--port", str(port)]
    teacher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    start = FolderPush(load("nano/math-base", key="student"), folder, key="student").write(0)
    try:
        with running(str(start), folder / "rollouts.log", *ROLLING) if PYTHON else stand_in() as url:
            engine = {"type": "vllm", "url": url, "tolerance": 1e-3, "wait": 120}
            teaching = {"url": f"http://127.0.0.1:{port}", "wait": 120}
            keys = {**LANGUAGE, "teacher.served": teaching, "rollout.engine": engine, "rollout.ahead": 1}
            RUNS[SERVERS] = ("opd", keys)
            yield
    finally:
        teacher.terminate()


@contextmanager
def stand_in() -> Iterator[str]:
    """The tests' own rollout server, in another process."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=stand_in_for_vllm, args=(there,), daemon=True)
    process.start()
    yield here.recv()
    process.terminate()


def stand_in_for_vllm(url: Any) -> None:
    torch.set_num_threads(1)
    with RolloutServer(load("nano/math-base", key="student")) as server:
        url.send(server.url)
        server.thread.join()


def note_rollouts(out: Path) -> None:
    """Write a line for each step's rollouts when it takes them."""
    take = Ahead.rollout

    def noted(self: Ahead, prompts: Sequence[Prompt], seed: int, step: int = 0) -> Sequence[Rollout]:
        found = take(self, prompts, seed, step)
        tokens = hashlib.sha256(repr([one.completion_ids for one in found]).encode()).hexdigest()
        with out.with_suffix(".tokens").open("a") as file:
            file.write(f"{step} {tokens}\n")
        return found

    Ahead.rollout = noted  # type: ignore[method-assign]


def tokens(out: Path) -> dict[str, list[str]]:
    """Of each step, the different batches of tokens that processes of the run trained on."""
    file, found = out.with_suffix(".tokens"), dict[str, list[str]]()
    for line in file.read_text().splitlines() if file.exists() else []:
        step, batch = line.split()
        found[step] = sorted({*found.get(step, []), batch})
    return found


def work(name: str, out: Path) -> None:
    """The run, begun or resumed, in a process of its own."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    if name == PIPELINE:
        file = out.with_suffix(".yaml")
        file.write_text(yaml.safe_dump({"out": str(out), "parallel": 1, "stages": stages()}))
        ended = pipeline(str(file)).exit_status
    else:
        recipe, overrides = RUNS[name]
        note_rollouts(out)
        opd.train(recipe, {**overrides, "out": str(out)}, resume=True)
        ended = 0
    os._exit(ended)


def start(name: str, out: Path) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=(name, out))
    process.start()
    return process


def finish(name: str, out: Path) -> None:
    process = start(name, out)
    process.join()
    if process.exitcode:
        sys.exit(f"{name}: status {process.exitcode}, in {out}")


def outcome(out: Path) -> dict[str, Any]:
    """Digests of all weights and moments, the result without times, and the metrics of each step."""
    found: dict[str, Any] = {"tokens": tokens(out)}
    for path in sorted(out.rglob("*")):
        place = path.relative_to(out).as_posix()
        if place.startswith("pushed/"):  # copies for the servers
            continue
        if path.name == "ahead.safetensors":
            found[place] = stored_rollouts(path)
        elif path.suffix == ".safetensors" and path.name != "rng.safetensors":
            found[place] = digest(path)
        elif path.name == "result.json":
            found[place] = timeless(json.loads(path.read_text()))
        elif path.name == "metrics.jsonl":
            found[place] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return found


def digest(path: Path) -> str:
    """sha256 of the tensors in a file; the order of its header is left to chance."""
    tensors, whole = load_file(path), hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode() + tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def stored_rollouts(path: Path) -> Any:
    """The rollouts in a checkpoint; the label of their weights is another in each process."""
    stored = [json.loads(tensor.numpy().tobytes()) for tensor in load_file(path).values()]
    return [(one["step"], repr(one["rollouts"])) for one in stored]


def timeless(tree: Any) -> Any:
    """The tree without times, and without the bytes that had come by then."""
    if isinstance(tree, dict):
        kept = {k: v for k, v in tree.items() if k not in ("seconds", "server_mb") and not k.endswith(("_s", "per_s"))}
        return {k: timeless(v) for k, v in kept.items()}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


def moments(out: Path, lines: int, rng: random.Random) -> Iterator[None]:
    """Wait until a random number of metrics has been written, and a little longer; yields until then."""
    wanted, longer = rng.randrange(lines), rng.uniform(0.0, 0.4)
    while _lines(out) < wanted:
        yield
    end = time.monotonic() + longer
    while time.monotonic() < end:
        yield


def _lines(out: Path) -> int:
    """Lines of metrics so far; 0 if a checkpoint is deleted while they are looked for, as they are looked for again."""
    try:
        return sum(path.read_bytes().count(b"\n") for path in out.rglob("metrics.jsonl"))
    except FileNotFoundError:
        return 0


def kill(name: str, out: Path, lines: int, rng: random.Random) -> bool:
    """Start or resume the run and kill it; whether it was still running then."""
    process = start(name, out)
    for _ in moments(out, lines, rng):
        if process.exitcode is not None:
            return False
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return bool(process.exitcode == -signal.SIGKILL)


def main() -> None:
    args = arguments()
    folder = Path(tempfile.mkdtemp(prefix="opd-kills-"))
    with servers(folder) if SERVERS in (args.only or ()) else nullcontext():
        trials(args, folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=[*RUNS, PIPELINE, SERVERS])
    return parser.parse_args()


def trials(args: argparse.Namespace, folder: Path) -> None:
    """Kill and resume until there are as many kills as were asked for."""
    rng = random.Random(args.seed)
    names = args.only or [*islice(cycle(RUNS), 9), PIPELINE]
    whole: dict[str, dict[str, Any]] = {}
    kills: dict[str, int] = dict.fromkeys(names, 0)
    number = identical = 0
    for name in cycle(names):
        if sum(kills.values()) >= args.kills:
            break
        if name not in whole:
            finish(name, folder / f"{name}-whole")
            whole[name] = outcome(folder / f"{name}-whole")
        lines = sum(len(value) for key, value in whole[name].items() if key.endswith("metrics.jsonl"))
        out = folder / f"killed-{number}"
        times = sum(kill(name, out, lines, rng) for _ in range(rng.choice((1, 1, 2))))
        had = sorted(p.name for p in out.glob("checkpoints/[0-9]*")) if out.exists() else []
        finish(name, out)
        found = outcome(out)
        differing = sorted(key for key in found.keys() | whole[name].keys() if found.get(key) != whole[name].get(key))
        number, identical, kills[name] = number + 1, identical + (not differing), kills[name] + times
        after = f"newest checkpoint {had[-1] if had else 'none'}"
        print(
            f"{name}: killed {times} times, {after}: {f'DIFFERENT: {differing}' if differing else 'equal'}", flush=True
        )
        if not differing:
            shutil.rmtree(out)
    counts = ", ".join(f"{name} {times}" for name, times in kills.items())
    print(f"{sum(kills.values())} kills in {number} trials ({counts}): {identical} of {number} end with equal bits")
    if identical != number:
        sys.exit(f"see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
