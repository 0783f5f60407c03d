"""Served teachers: what latency costs a step, how many bytes a token takes, and whether faults change a weight.

    python benchmarks/serving.py latency   # a teacher 100 ms away beside one that answers at once
    python benchmarks/serving.py bytes     # opd serve: states of the scored tokens alone
    python benchmarks/serving.py faults    # 200 faults over 40 steps: the weights of a run without any
    python benchmarks/serving.py recipes [opd hint …]   # whole runs with opd serve, beside local ones

The teacher's own computation is left out of ``latency``: its answers are recorded in a first run, and given again after
a delay, as a teacher on another machine would.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from torch import Tensor

import opd
from opd.models.loading import load
from opd.servers.states import StateServers
from opd.servers.wire import Sequences
from support.chat_server import CriticServer
from support.served import FAULTS, Teacher

DELAY_S = 0.1
ROUNDS = 5
"""Pairs of runs; the machine's other work makes single ones differ."""
COMMON: dict[str, Any] = {
    "eval.prompts": None,
    "report": None,
    "log": [],
    "guards.max_idle": 1000,
    "optimizer.micro_batch": 16,
}

waits: list[float] = []
"""Seconds of each step in which the run had nothing to compute."""

known: dict[Any, list[Tensor]] = {}
"""Recorded answers by their questions."""


class Elsewhere:
    """Stands in for ``StateServers.ask``: records, or answers after a delay without computing."""

    def __init__(self) -> None:
        self.ask = StateServers.ask
        self.delay: float | None = None

    def __call__(self, server: StateServers, sequences: Sequences, blocks: Sequence[int] = ()) -> Future[list[Tensor]]:
        key = tuple((tuple(ids[: max(rows) + 1]), tuple(rows)) for ids, rows in sequences)
        if self.delay is None:
            future = self.ask(server, sequences, blocks)
            known[key] = future.result()
            return future
        answer: Future[list[Tensor]] = Future()
        threading.Timer(self.delay, answer.set_result, [known[key]]).start()
        return answer


def run(server: Teacher, out: str, **keys: Any) -> tuple[list[float], bytes]:
    """Seconds of each step after the first two, and the weights."""
    with tempfile.TemporaryDirectory() as folder:
        steps: list[float] = []

        class Clock:
            last = time.perf_counter()

            def step(self, step: int, metrics: Any) -> None:
                now = time.perf_counter()
                steps.append(now - self.last)
                waits.append(metrics["server_wait_s"])
                self.last = now

        served = {"url": server.url, "timeout": 2, "wait": 120, "sequences": keys.pop("sequences", 8)}
        opd.train("opd", {**COMMON, "teacher.served": served, **keys, "out": f"{folder}/{out}"}, callbacks=[Clock()])
        return steps[2:], (Path(folder) / out / "model.safetensors").read_bytes()


def latency(server: Teacher) -> None:
    """A delay of 100 ms beside none, alternating."""
    elsewhere = Elsewhere()
    StateServers.ask = lambda *arguments: elsewhere(*arguments)  # type: ignore[method-assign]
    keys = {"optimizer.steps": 12}
    run(server, "record", **keys)
    medians: dict[float, list[float]] = {0.0: [], DELAY_S: []}
    waited: dict[float, list[float]] = {delay: [] for delay in medians}
    weights = set()
    for _ in range(ROUNDS):
        for delay, found in medians.items():
            elsewhere.delay = delay
            waits.clear()
            steps, saved = run(server, "timed", **keys)
            found.append(statistics.median(steps))
            waited[delay].append(statistics.median(waits[2:]))
            weights.add(saved)
    StateServers.ask = elsewhere.ask  # type: ignore[method-assign]
    pairs = [a / b for a, b in zip(*medians.values(), strict=True)]
    for delay, found in medians.items():
        print(
            f"{delay:.1f} s away: {statistics.median(found):.3f} s a step ({min(found):.3f} to {max(found):.3f}), "
            f"{statistics.median(waited[delay]):.3f} s of it waiting"
        )
    print(
        f"step rate with {DELAY_S} s beside none: {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"
    )
    print(f"weights of all runs are {'equal' if len(weights) == 1 else 'different'}")


def size(server: Teacher) -> None:
    """Bytes of a scored token."""
    with tempfile.TemporaryDirectory() as folder:
        keys = {**COMMON, "optimizer.steps": 2, "teacher.served": server.url, "out": folder}
        result = opd.train("opd", keys)
        lines = [line for line in (result.out / "metrics.jsonl").read_text().splitlines() if "server_mb" in line]
        trained = [json.loads(line)["train"] for line in lines]
    width = load("nano/math-teacher", key="t").width
    per_token = [1e6 * one["server_mb"] / one["tokens"] for one in trained]
    print(f"opd serve: {per_token[-1]:.1f} bytes a scored token, 2·D = {2 * width}")


def faults(server: Teacher) -> None:
    """200 faults of every kind over 40 steps."""
    keys = {"optimizer.steps": 40, "rollout.prompts_per_step": 16, "rollout.max_new_tokens": 24}
    keys["sequences"] = 1  # many questions, so that no single one takes most of the faults
    _, clean = run(server, "clean", **keys)
    asked = server.asked.count("/pooling")
    draw = random.Random(0)
    kinds = [name for name in FAULTS if name not in ("slow", "drips")] * 19 + ["slow", "drips"] * 5
    planned = [*kinds[:200], *[""] * (asked // 2)]
    draw.shuffle(planned)
    server.faults = deque(["", *planned])
    started = time.perf_counter()
    _, hit = run(server, "hit", **keys)
    seconds, given = time.perf_counter() - started, 200 - sum(map(bool, server.faults))
    print(
        f"{given} faults of {len(set(kinds[:200]))} kinds in {seconds:.0f} s: the weights are "
        f"{'equal, bit for bit' if hit == clean else 'DIFFERENT'}"
    )


TEACHERS = ("math-teacher", "math-biased", "math-teacher-bpe", "tools-base")

TWO = {"good": "math-teacher", "biased": "math-biased"}
"""The teachers of ``mopd``, by their keys."""


def served_recipes(url: str, critic: str) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """A recipe, its keys, and the keys by which its teacher and its author are served."""

    def at(name: str) -> dict[str, Any]:
        return {"url": url, "name": name, "states": "float32", "wait": 120}

    mopd = {
        "loss.signal": "full",
        "teacher": {
            "models": {
                name: {"model": f"nano/{model}", "domains": ["math"], "weight": 1.0 if name == "good" else 0.1}
                for name, model in TWO.items()
            }
        },
    }
    hint = {"teacher.model": "nano/tools-base"}
    http = {"type": "http", "url": critic, "model": "critic"}
    local = {"type": "model", "model": "nano/critic"}
    return {
        "opd": ("opd", {}, {"teacher.served": at("math-teacher")}),
        "hint": ("hint", hint, {"teacher.served": at("tools-base")}),
        "hint, author over HTTP": (
            "hint",
            {**hint, "teacher.view.author": local},
            {"teacher.view.author": http, "teacher.served": at("tools-base")},
        ),
        "lsm": ("lsm", {}, {"teacher.served": at("math-teacher")}),
        "tml": ("tml", {}, {"teacher.served": at("math-teacher")}),
        "gold": ("gold", {}, {"teacher.served": at("math-teacher-bpe")}),
        "mopd": ("tml", mopd, {f"teacher.models.{name}.served": at(model) for name, model in TWO.items()}),
    }


def recipes(chosen: Sequence[str]) -> None:
    """Whole runs, local and served, with the accuracy of each."""
    usual: dict[str, Any] = {
        "eval.prompts.limit": 128,
        "eval.diagnostics": 0,
        "eval.rollouts_per_prompt": 2,
        "report": None,
        "log": [],
    }
    critic = CriticServer(load("nano/critic", key="critic"))
    with Teacher({name: load(f"nano/{name}", key=name) for name in TEACHERS}) as server:
        cases = served_recipes(server.url, critic.url)
        for name in chosen or cases:
            recipe, keys, served = cases[name]
            found = []
            for more in ({}, served):
                with tempfile.TemporaryDirectory() as out:
                    result = opd.train(recipe, {**usual, **keys, **more, "out": out})
                found.append(result)
            before, local, there = (100 * one["accuracy"] for one in (found[0].before, *(run.after for run in found)))
            sampled = [100 * run.after["avg@2"] for run in found]
            print(
                f"{name}: {found[0].steps} steps, accuracy {before:.1f} % before, {local:.1f} % local, {there:.1f} % "
                f"served; avg@2 {sampled[0]:.1f} % and {sampled[1]:.1f} %",
                flush=True,
            )
    critic.stop()


if __name__ == "__main__":
    chosen = {"latency": latency, "bytes": size, "faults": faults}
    if sys.argv[1:2] == ["recipes"]:
        recipes(sys.argv[2:])
        sys.exit()
    with Teacher({"teacher": load("nano/math-teacher", key="teacher")}) as teacher:
        for name in sys.argv[1:] or chosen:
            chosen[name](teacher)
