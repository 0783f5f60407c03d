"""The golden record of a recipe: what its first steps compute, and the weights that result.

A refactor leaves all of it as it is. After a change that is meant to move numbers, write the record again:

    OMP_NUM_THREADS=1 python tests/golden/record.py [RECIPE ...]
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import opd
from opd.config.read import read, recipe_names

FOLDER = Path(__file__).parent
STEPS = 4


def machine() -> str:
    """What has to be the same for bits to be the same."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"torch {torch.__version__}, {cpu}, {model.partition(':')[2].strip()}"


def digest(out: Path) -> str:
    """A checksum of every tensor that a run saved, whatever file it is in."""
    total = hashlib.sha256()
    files = [p for p in sorted(out.rglob("*.safetensors")) if "checkpoints" not in p.parts]
    for path in files:
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name).contiguous()
                total.update(f"{path.relative_to(out)} {name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                total.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def record(name: str, folder: Path) -> dict[str, Any]:
    """Run a recipe's first steps at a small batch, and say what it computed.

    Returns:
        ``losses``: nats or the recipe's own unit, one a step; ``tokens``: trained positions, one a step;
        ``weights``: a checksum of what was saved.
    """
    out = folder / name
    torch.set_num_threads(1)
    small: dict[str, Any] = {"optimizer.steps": STEPS, "eval.prompts": None, "report": False}
    if read(name).family == "diffusion":
        small["rollout.prompts_per_step"] = 4
    else:
        small |= {"rollout.prompts_per_step": 8, "save.dtype": "float32"}
    if name == "lightning":
        small["rollout.source.prompts"] = 32
    opd.train(name, {**small, "log": [], "out": str(out)})
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row["train"] for row in rows if "train" in row]
    return {
        "losses": [step.get("loss") for step in steps],
        "tokens": [step["tokens"] for step in steps],
        "weights": digest(out),
    }


def main() -> None:
    for name in sys.argv[1:] or recipe_names():
        with tempfile.TemporaryDirectory() as folder:
            golden = {"machine": machine(), **record(name, Path(folder))}
        (FOLDER / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n")
        print(name, golden["losses"], flush=True)


if __name__ == "__main__":
    main()
