"""Kill one pipeline again and again at random moments: it must end with the files of one that was left alone.

    python benchmarks/pipeline_kills.py [--kills 10] [--steps 12] [--parallel 2]

Two experts, a student of both, their mean and a table of figures. Each start is killed with SIGKILL somewhere between
its first second and a sixth of the time that the whole pipeline takes, and the next one begins at once, while
processes of the one before may still be ending. At last it is left alone, and the digests of all weights,
configurations, tokenizers and figures are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

HELD_OUT = {"task": "math", "split": "test", "limit": 32}


def stages(steps: int) -> dict[str, object]:
    train = {
        "run": "opd",
        "optimizer.steps": steps,
        "rollout.prompts_per_step": 16,
        "checkpoint.every": 2,
        "eval": {"prompts": HELD_OUT, "every": 5, "diagnostics": 8},
        "guards": {"drop": 1.0, "below_start": 1.0},  # 32 prompts are few, and a guard would stop the pipeline
        "threads": 1,
    }
    taught = {"teacher": {"model": "stage:one"}, "student": "stage:two"}
    return {
        "one": {**train, "seed": 1},
        "two": {**train, "seed": 2, "run": "opsd", "teacher.weights": "ema"},
        "student": {**train, **taught},
        "mean": {"average": ["stage:one", "stage:student"]},
        "scores": {"eval": ["stage:student", "stage:mean"], "prompts": HELD_OUT, "samples": 2, "max_new_tokens": 64},
    }


def outputs(out: Path) -> dict[str, dict[str, str]]:
    """Digests of every stage's files."""
    return {path.parent.name: json.loads(path.read_text())["outputs"] for path in sorted(out.glob("*/stage.json"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, folder = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="opd-pipeline-kills-"))
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"out": "set below", "parallel": args.parallel, "stages": stages(args.steps)}))
    command = [sys.executable, "-m", "opd", "pipeline", str(file)]
    started = time.perf_counter()
    subprocess.run([*command, f"out={folder / 'whole'}", "parallel=1"], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    out, killed = folder / "killed", 0
    for kill in range(args.kills):
        process = subprocess.Popen([*command, f"out={out}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        moment = rng.uniform(1.0, seconds / 6)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        status = f"ended by itself with status {process.returncode}" if process.returncode >= 0 else "killed"
        killed += process.returncode < 0
        done = ", ".join(outputs(out)) if out.exists() else ""
        print(f"start {kill + 1:>2} {status} after {moment:5.1f} s; finished so far: {done or 'none'}", flush=True)
    last = subprocess.run([*command, f"out={out}"], capture_output=True, text=True)
    if last.returncode:
        sys.exit(f"the last start failed, in {folder}: {last.stderr}")
    expected, found = outputs(folder / "whole"), outputs(out)
    same = [name for name in expected if found.get(name) == expected[name]]
    print(
        f"after {killed} kills {len(same)} of {len(expected)} stages left the same files as in a pipeline left alone "
        f"({seconds:.0f} s)"
    )
    if len(same) != len(expected):
        sys.exit(f"{sorted(expected.keys() - set(same))} differ, in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
