"""LoRA beside training all weights: accuracy on the nano suite, memory of whole runs, and adapters that teach.

    python benchmarks/lora.py accuracy     # hint and opd, three seeds each
    python benchmarks/lora.py rates        # the trial that chose the learning rates, one seed each
    python benchmarks/lora.py memory       # two steps of a random model of 34 M parameters
    python benchmarks/lora.py experts      # one to ten adapters of one base, and each beside its merged model

``memory --student FOLDER --teacher FOLDER --prompts FILE`` measures a pair of your own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # before memory is measured: it takes 50 MB itself
import torch
from recipes import UPDATES, run, table
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from opd.axes.base import Objects
from opd.config.read import read
from opd.config.run import RunConfig
from opd.evaluation.memory import size_of
from opd.language.run import LanguageRun
from opd.models.adapters import merged, new_adapter, save_adapter
from opd.models.bundled import resolve
from opd.models.language import LanguageModel
from opd.models.loading import load
from opd.models.pool import ModelPool
from opd.output.run_log import RunLog

RATES = {"hint": 2e-3, "opd": 5e-3}
"""Learning rates of the adapters, of the trial."""
TRIED = {"hint": (1e-3, 2e-3, 5e-3, 1e-2), "opd": (3e-3, 5e-3, 1e-2, 2e-2)}
ADAPTER = {"lora.rank": 16, "lora.alpha": 32}
METRICS = {"hint": ["invalid_call_rate", "accuracy", "avg@4"], "opd": ["accuracy", "avg@4"]}


def accuracy(seeds: int, folder: Path) -> None:
    """The recipes with all weights, and with an adapter."""
    for recipe, rate in RATES.items():
        variants: dict[str, dict[str, Any]] = {"all weights": {}, "LoRA": {**ADAPTER, "optimizer.lr": rate}}
        rows = {name: [run(recipe, seed, folder, more) for seed in range(seeds)] for name, more in variants.items()}
        table(f"`{recipe}`, {UPDATES[recipe]} updates", rows, METRICS[recipe])


def rates(folder: Path) -> None:
    """One seed with each learning rate, half as many updates."""
    for recipe, tried in TRIED.items():
        half = {"optimizer.steps": UPDATES[recipe] // 2, "eval.every": UPDATES[recipe] // 2}
        variants: dict[str, dict[str, Any]] = {"all weights": {}}
        variants |= {f"LoRA, {rate:g}": {**ADAPTER, "optimizer.lr": rate} for rate in tried}
        rows = {name: [run(recipe, 0, folder, half | more)] for name, more in variants.items()}
        table(f"`{recipe}`, {UPDATES[recipe] // 2} updates, one seed", rows, METRICS[recipe])


# ------------------------------------------------------------------------------------------------ memory


def random_model(folder: Path, seed: int = 0) -> str:
    """A random Llama of 34 M parameters with the bundled tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=16_384,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano/math-base"))
    LanguageModel(LlamaForCausalLM(config), tokenizer, "random").save(folder)
    return str(folder)


def memory(student: str, teacher: str, prompts: Any) -> None:
    """Bytes of all tensors that stay through a run, and the peak of the process."""
    small = {
        "student": student,
        "prompts": prompts,
        "rollout": {"prompts_per_step": 2, "max_new_tokens": 16},
        "optimizer": {"lr": 1e-5, "steps": 2, "micro_batch": 1},
        "report": False,
        "log": [],
    }
    teachers: dict[str, dict[str, Any]] = {
        "another model": {"teacher": {"model": teacher}, "loss": {"divergence": "reverse_kl"}},
        "itself, frozen, and an anchor": {"teacher": {"view": CONTEXT}, "loss": {"anchor": 0.2}},
        "its average, and an anchor": {"teacher": {"weights": "ema", "view": CONTEXT}, "loss": {"anchor": 0.2}},
    }
    heads = ("teacher", "", "parameters that train", "weights MB", "gradients, moments MB", "process, peak MB")
    print(f"\n| {' | '.join(heads)} |\n|---|---|---|---|---|---|")
    for name, keys in teachers.items():
        for variant, more in {"all weights": {}, "LoRA": {"lora": {"rank": 16, "alpha": 32}}}.items():
            found = in_a_process("one", small | keys | more)
            cells = [f"{found['training']:,}", *(f"{found[k] / 1e6:.1f}" for k in ("held", "trained", "peak"))]
            print(f"| {name} | {variant} | {' | '.join(cells)} |", flush=True)


CONTEXT = {"type": "context", "text": "Solve it step by step."}


def one(tree: dict[str, Any]) -> dict[str, float]:
    """One run in this process: what it holds at its end, and what the process took at most beyond its start."""
    start = current()
    with tempfile.TemporaryDirectory() as folder:
        config = read(tree | {"out": folder})
        assert isinstance(config, RunConfig)
        loop = LanguageRun.load(config, Objects()).assemble(RunLog(Path(folder) / "log"))
        loop.run()
    models = [loop.student.model, *(reader(term.teacher) for term in loop.terms)]
    models += [loop.average.average] if loop.average else []
    trained = [p for p in loop.student.model.parameters() if p.requires_grad]
    return {
        "training": sum(p.numel() for p in trained),
        "held": size_of(p for m in models for p in m.parameters()),
        "trained": size_of(trained) + size_of(loop.optimizer.tensors().values()),
        "peak": peak() - start,
    }


def reader(teacher: Any) -> nn.Module:
    """The model of a loss term's teacher."""
    inner = teacher if hasattr(teacher, "language_model") else teacher.teacher
    found: nn.Module = inner.language_model.model
    return found


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def current() -> float:
    return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def in_a_process(name: str, given: Any) -> dict[str, float]:
    """The result of ``one`` or ``pool`` in a process of its own."""
    command = [sys.executable, __file__, f"_{name}", json.dumps(given)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


# ------------------------------------------------------------------------------------------------ experts


def experts(folder: Path) -> None:
    """Adapters of one base as teachers: memory by their number, and each against its merged model."""
    base = random_model(folder / "base")
    saved = [adapter(base, folder / f"a{n}", n) for n in range(10)]
    print("\n| teachers of 34 M parameters | tensors MB | process, peak MB |\n|---|---|---|")
    for n in (1, 2, 5, 10):
        found = in_a_process("pool", saved[:n])
        print(f"| {n} adapters of one base | {found['held'] / 1e6:.1f} | {found['peak'] / 1e6:.0f} |", flush=True)
    base = resolve("nano/math-base")
    pool = ModelPool({str(n): adapter(base, folder / f"n{n}", n) for n in range(10)}, key="teacher.models")
    ids = torch.arange(5, 45)[None]
    apart = {torch.float32: 0.0, torch.float64: 0.0}
    for name in pool:
        for dtype in apart:
            model = pool[name].model.to(dtype)
            with torch.no_grad():
                ours, theirs = (m(ids).logits.log_softmax(-1) for m in (model, merged(model)))
            apart[dtype] = max(apart[dtype], float((ours - theirs).abs().max()))
    print(
        "\nLargest difference of a log-probability between an adapter of nano/math-base and its merged model, of ten:"
    )
    print(", ".join(f"{worst:.1e} in {dtype}" for dtype, worst in apart.items()))


def adapter(base: str, folder: Path, seed: int) -> str:
    """The folder of an adapter of a base, with both factors random."""
    torch.manual_seed(seed)
    language_model = load(base, key="base")
    model = new_adapter(language_model.model, rank=16, alpha=32)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    save_adapter(model, folder)
    return str(folder)


def pool(sources: list[str]) -> dict[str, float]:
    """Several teachers in this process, each having scored a few tokens."""
    start = current()
    teachers = ModelPool({str(n): source for n, source in enumerate(sources)}, key="teacher.models")
    held = {}
    for name in teachers:
        with torch.no_grad():
            teachers[name].hidden(torch.arange(5, 13)[None], torch.ones(1, 8, dtype=torch.int64))
        held[name] = teachers[name].model
    return {"held": size_of(p for m in held.values() for p in m.parameters()), "peak": peak() - start}


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in ("_one", "_pool"):
        job: Callable[[Any], dict[str, float]] = one if sys.argv[1] == "_one" else pool
        print(json.dumps(job(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "rates", "memory", "experts"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--student")
    parser.add_argument("--teacher")
    parser.add_argument("--prompts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="opd-lora-") as name:
        folder = Path(name)
        if args.what == "accuracy":
            accuracy(args.seeds, folder)
        elif args.what == "rates":
            rates(folder)
        elif args.what == "experts":
            experts(folder)
        elif args.student:
            memory(args.student, args.teacher, args.prompts)
        else:
            memory(random_model(folder / "s"), random_model(folder / "t", 1), {"task": "math", "split": "train"})


if __name__ == "__main__":
    main()
