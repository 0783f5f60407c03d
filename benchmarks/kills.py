"""Kill runs at random moments and resume them: what they end with must equal a run that was left alone, bit for bit.

    python benchmarks/kills.py [--kills 100] [--only lora]

Language runs with an averaged teacher, with recovery, with LoRA, and denoising runs take the kills in turn; each is
killed with SIGKILL once or twice. Every tenth trial is a pipeline. Weights, optimizer, averaged teacher, metrics and
result are compared. Runs are forked from a process that has imported everything, so that a kill costs a few seconds.
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
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import opd
import opd.diffusion.run
from opd.pipelines.run import pipeline

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
    "curriculum": ("grpo", {**LANGUAGE, "experimental.curriculum": {}, "eval.prompts": None}),
    "diffusion": ("diffusion-opd", {**IMAGES, "loss.step_weights": None}),
    "diffusion, all weights": ("d-opsd", {**IMAGES, "lora": None, "teacher.weights": {"type": "ema", "decay": 0.9}}),
}
"""Recipes with overrides, by name."""

PIPELINE = "pipeline"


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
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        place = path.relative_to(out).as_posix()
        if path.suffix == ".safetensors" and path.name != "rng.safetensors":
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


def timeless(tree: Any) -> Any:
    """The tree without times."""
    if isinstance(tree, dict):
        return {k: timeless(v) for k, v in tree.items() if k != "seconds" and not k.endswith(("_s", "per_s"))}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


def moments(out: Path, lines: int, rng: random.Random) -> Iterator[None]:
    """Wait until a random number of metrics has been written, and a little longer; yields until then."""
    wanted, longer = rng.randrange(lines), rng.uniform(0.0, 0.4)
    while sum(path.read_bytes().count(b"\n") for path in out.rglob("metrics.jsonl")) < wanted:
        yield
    end = time.monotonic() + longer
    while time.monotonic() < end:
        yield


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=[*RUNS, PIPELINE])
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="opd-kills-"))
    names = args.only or [*islice(cycle(RUNS), 9), PIPELINE]
    whole: dict[str, dict[str, Any]] = {}
    kills: dict[str, int] = dict.fromkeys(names, 0)
    trials = identical = 0
    for name in cycle(names):
        if sum(kills.values()) >= args.kills:
            break
        if name not in whole:
            finish(name, folder / f"{name}-whole")
            whole[name] = outcome(folder / f"{name}-whole")
        lines = sum(len(value) for key, value in whole[name].items() if key.endswith("metrics.jsonl"))
        out = folder / f"killed-{trials}"
        times = sum(kill(name, out, lines, rng) for _ in range(rng.choice((1, 1, 2))))
        had = sorted(p.name for p in out.glob("checkpoints/[0-9]*")) if out.exists() else []
        finish(name, out)
        found = outcome(out)
        differing = sorted(key for key in found.keys() | whole[name].keys() if found.get(key) != whole[name].get(key))
        trials, identical, kills[name] = trials + 1, identical + (not differing), kills[name] + times
        after = f"newest checkpoint {had[-1] if had else 'none'}"
        print(
            f"{name}: killed {times} times, {after}: {f'DIFFERENT: {differing}' if differing else 'equal'}", flush=True
        )
        if not differing:
            shutil.rmtree(out)
    counts = ", ".join(f"{name} {number}" for name, number in kills.items())
    print(f"{sum(kills.values())} kills in {trials} trials ({counts}): {identical} of {trials} end with equal bits")
    if identical != trials:
        sys.exit(f"see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
