"""Whole steps on a CPU: opd packed, opd padded and TRL's DistillationTrainer, one table.

    python benchmarks/step.py [--trl-python VENV/bin/python] [--student FOLDER --teacher FOLDER --prompts FILE.jsonl]

Rollouts of the student, the teacher's forward pass over them, and one update on the reverse KL over the whole
vocabulary: float32, one thread, one micro-batch. By default both models are random Qwen3 models made on the spot. Two
of their 291 tokens end an answer, so lengths are spread as chance has it (each token is the last with probability
1 / 145), up to a limit. Every variant samples its own answers; the learning rate is 1e-9, so that they keep their
lengths.

Variants alternate, each round in processes of their own; the first step of a process does not count. Seconds are of CPU
time, which is the time on an idle machine, as one thread computes. Medians over all counted steps are quoted per
generated token, because answers differ by chance.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from step_common import Check, Memory, clock
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import opd
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.models import packing
from opd.models.bundled import resolve
from opd.training.checkpoint import Checkpoints
from opd.training.optimizer import Optimizer
from opd.types import Generation

PARTS = ("rollout", "teacher", "update", "step")
ENDS = [2, 100]
"""Tokens that end an answer: the tokenizer's own, and any other."""
SIZES = {"student": (128, 4), "teacher": (256, 6)}


def make_models(folder: Path) -> dict[str, str]:
    """Random models with the bundled models' tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano/math-base"))
    for seed, (name, (hidden, layers)) in enumerate(SIZES.items()):
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 64,
            head_dim=32,
            max_position_embeddings=1024,
            eos_token_id=ENDS,
            pad_token_id=tokenizer.pad_token_id,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in SIZES}


class Ended(KeyboardInterrupt):
    """The last step is over; nothing has to be saved."""


class Steps:
    """A callback that keeps the seconds of each step and of its parts, and ends the run after the last one."""

    def __init__(self, device: str, number: int) -> None:
        self.number = number
        self.found: list[dict[str, float]] = []
        self.memory = Memory(device)
        self.last = 0.0

    def start(self, run: Any) -> None:
        self.memory.start()
        self.last = time.perf_counter()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        now = time.perf_counter()
        parts = {part: metrics[f"{part}_s"] for part in PARTS[:3]}
        self.found.append({**parts, "step": now - self.last, "tokens": metrics["tokens"], "memory": self.memory.peak()})
        self.last = now
        if len(self.found) == self.number:
            raise Ended


def work(student: str, teacher: str, prompts: str, settings: str) -> None:
    """Whole steps of opd in this process."""
    given = json.loads(settings)
    time.perf_counter = clock(given["device"])  # the loop's own clock
    if not given["packed"]:
        packing._probe = lambda language_model: False
    rows = [{"messages": p} if isinstance(p, list) else {"prompt": p} for p in json.loads(Path(prompts).read_text())]
    steps, check = Steps(given["device"], given["steps"]), Check(given["check"])
    with tempfile.TemporaryDirectory() as folder, checked(check), suppress(Ended):
        tree = {
            "student": student,
            "teacher": {"model": teacher},
            "prompts": {"path": "given"},
            "loss": {"divergence": "reverse_kl"},
            "rollout": {"prompts_per_step": given["batch"], "max_new_tokens": given["limit"]},
            "optimizer": {"lr": 1e-9, "steps": given["steps"], **given["optimizer"]},
            "dtype": given["dtype"],
            "device": given["device"],
            "compile": given["compile"],
            "report": False,
            "threads": 1 if given["device"] == "cpu" else None,
            "log": [],
            "seed": given["seed"],
            "out": f"{folder}/run",
        }
        opd.train(tree, prompts=rows, callbacks=[steps])
    print(json.dumps([{**step, "error": check.error} for step in steps.found]))


@contextmanager
def checked(check: Check) -> Iterator[None]:
    """The first answers are the given ones, and their gradient is compared; no checkpoint is saved, as in TRL's run."""
    generate, update = HFEngine.generate, Optimizer.step

    def answer(self: Any, contexts: Any, *args: Any, **kwargs: Any) -> Any:
        if (found := check.take(contexts)) is None:
            return generate(self, contexts, *args, **kwargs)
        return [Generation(tuple(ids), (0.0,) * len(ids), False) for ids in found]

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        check.compare(self.named.items())
        return update(self, *args, **kwargs)

    patched = (HFEngine, "generate", answer), (Optimizer, "step", step), (Checkpoints, "save", lambda *_, **__: None)
    with ExitStack() as held:
        for one in patched:
            held.enter_context(mock.patch.object(*one))
        yield


ON_A_CPU: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "check": None,
    "optimizer": {},
    "packed": True,
    "compile": False,
}


def steps_of(
    command: list[str], settings: dict[str, Any], *, timeout: float | None = None, **environment: str
) -> list[dict[str, float]]:
    """The steps that one worker made."""
    given = [*command, json.dumps(settings)]
    done = subprocess.run(
        given, capture_output=True, text=True, check=False, timeout=timeout, env={**os.environ, **environment}
    )
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed:\n{done.stderr[-3000:]}")
    found: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """The table: seconds of a step of the same number of tokens, and ratios to opd packed."""
    tokens = statistics.mean(step["tokens"] for steps in found.values() for step in steps)
    per_step = {
        name: {part: statistics.median(s[part] / s["tokens"] for s in steps) * tokens for part in PARTS}
        for name, steps in found.items()
    }
    print(f"seconds for {tokens:,.0f} generated tokens; in brackets, divided by opd packed\n")
    print("| | rollout | teacher | update | teacher + update | step | memory MB |\n|---|---|---|---|---|---|---|")
    for name, seconds in per_step.items():
        both = [{**s, "both": s["teacher"] + s["update"]} for s in (seconds, per_step["opd"])]
        cells = [
            f"{both[0][part]:.2f} ({both[0][part] / both[1][part]:.2f})"
            for part in ("rollout", "teacher", "update", "both", "step")
        ]
        memory = statistics.median(s["memory"] for s in found[name][-1:])
        print(f"| {name} | {' | '.join(cells)} | {memory:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="interpreter of an environment with trl")
    parser.add_argument("--compile", action="store_true", help="opd with compile=true too")
    parser.add_argument("--student", help="model folder; by default random models")
    parser.add_argument("--teacher")
    parser.add_argument("--prompts", help="JSONL with a text as prompt in each line; by default the task math")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a process")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {"student": args.student, "teacher": args.teacher} if args.student else make_models(Path(folder))
        if args.prompts:
            prompts = [json.loads(line)["prompt"] for line in Path(args.prompts).read_text().splitlines()]
        else:
            prompts = [list(p.messages or ()) for p in get_task("math").prompts("train")[:1024]]
        (Path(folder) / "prompts.json").write_text(json.dumps(prompts))
        here, given = Path(__file__).parent, [models["student"], models["teacher"], f"{folder}/prompts.json"]
        variants = {
            "opd": ([sys.executable, str(here / "step.py"), "worker", *given], {}),
            "opd, padded": ([sys.executable, str(here / "step.py"), "worker", *given], {"packed": False}),
        }
        if args.compile:
            variants["opd, compiled"] = variants["opd"][0], {"compile": True}
        if args.trl_python:
            variants["TRL 1.16"] = ([args.trl_python, str(here / "step_peer_trl.py"), *given], {})
        found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
        for seed in range(args.rounds):
            for name, (command, own) in variants.items():
                shared = {"batch": args.batch, "limit": args.limit, "steps": args.steps + 1, "seed": seed}
                shared["micro_batch"] = args.batch
                found[name] += steps_of(command, ON_A_CPU | shared | own)[1:]
                print(f"round {seed + 1}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    show(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(*sys.argv[2:])
    else:
        main()
