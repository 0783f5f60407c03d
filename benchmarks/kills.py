"""Kill a run at random moments and resume it: the final weights must equal an uninterrupted run's, bit for bit.

    python benchmarks/kills.py [--kills 20] [--steps 30]

Each trial starts a run with an averaged teacher (so that its state matters too), kills it with SIGKILL at a
random moment, resumes it, and compares model.safetensors and the figures with those of a run left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(out: Path, steps: int, *more: str) -> list[str]:
    overrides = [
        f"optimizer.steps={steps}",
        "teacher.weights=ema",
        "rollout.prompts_per_step=16",
        "checkpoint.every=3",
        "eval.every=5",
        "eval.prompts.limit=32",
        "threads=1",
        f"out={out}",
    ]
    return [sys.executable, "-m", "opd", "train", "hint", *overrides, *more]


def outcome(out: Path) -> tuple[str, dict[str, object], list[object]]:
    """Hash of the weights, the result without times, and the loss of every step."""
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    result = json.loads((out / "result.json").read_text())
    del result["seconds"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return weights, result, [(line["step"], line["train"]["loss"]) for line in lines if "train" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="opd-kills-"))
    started = time.perf_counter()
    subprocess.run(command(folder / "whole", args.steps), check=True, capture_output=True)
    seconds = time.perf_counter() - started
    expected = outcome(folder / "whole")
    identical = 0
    for trial in range(args.kills):
        out = folder / f"killed-{trial}"
        process = subprocess.Popen(command(out, args.steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        moment = rng.uniform(0.2, 1.0) * seconds
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        had = sorted(p.name for p in (out / "checkpoints").glob("[0-9]*")) if out.exists() else []
        subprocess.run(command(out, args.steps, "--resume"), check=True, capture_output=True)
        same = outcome(out) == expected
        identical += same
        print(
            f"kill {trial + 1:>2} after {moment:5.1f} s, newest checkpoint {had[-1] if had else 'none':>6}: "
            f"{'identical' if same else 'DIFFERENT'}",
            flush=True,
        )
        shutil.rmtree(out)
    shutil.rmtree(folder)
    print(f"{identical} of {args.kills} resumed runs have the weights, figures and losses of the run left alone")
    sys.exit(identical != args.kills)


if __name__ == "__main__":
    main()
