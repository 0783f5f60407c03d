"""A run's folder as a recorder leaves it, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"><!--\u2028{{data}}'


def write_run(
    folder: Path, *, text: str = "word", tokens: int = 8, rollouts: int = 2, steps: tuple[int, ...] = (0, 1)
) -> Path:
    """A run's folder as a recorder leaves it, with any text in every place that a model or data writes."""
    folder.mkdir(parents=True)
    method = {"title": text, "summary": text, "source": text}
    loss = {"signal": {"type": "full"}, "divergence": {"type": "forward_kl"}}
    (folder / "run.json").write_text(json.dumps({"method": method, "loss": loss, "eval": {"every": 1}}))
    lines = [{"step": s, "eval": {"accuracy": 0.5 + s / 100, "length": 3.0}} for s in steps]
    lines += [{"step": s, "train": {"loss": 1.0 / (s + 1), text: 0.1}} for s in steps]
    lines += [{"step": steps[-1], "event": {"kind": "collapse", "text": text}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [row(step, n, text, tokens) for step in steps for n in range(rollouts)]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return folder


def row(step: int, n: int, text: str, tokens: int) -> dict[str, Any]:
    own = [p for p in range(tokens) if p % 4 != 3]
    said: dict[str, Any] = {
        "logprob": [-0.5] * len(own),
        "entropy": [0.7] * len(own),
        "top": [[text, f"{text}{n}"]] * len(own),
        "top_logprob": [[-0.5, -1.0]] * len(own),
    }
    context = {"span": [0, 3], "at": None, "read": f"hint {text}", "instead_of": text}
    term = {
        "name": "distill",
        "role": "distill",
        "factor": 1.0,
        "count": len(own),
        "position": own[:-1],
        "weight": [1.0] * (len(own) - 1),
        "loss": [0.1 * (p % 9) for p in own[:-1]],
        "teachers": [{k: v[:-1] for k, v in said.items()}],
        "contexts": [context],
    }
    return {
        "step": step,
        "of": "eval",
        "n": n,
        "prompt": f"{text} {n}",
        "domain": text,
        "answer": text,
        "prompt_text": text,
        "prompt_ids": [1],
        "ids": list(range(tokens)),
        "text": [f"{text}{p}" for p in range(tokens)],
        "own": own,
        "drawn": [-0.5] * len(own),
        "special": [0],
        "turns": [[0, tokens]],
        "events": [{"kind": text, "span": [0, 3], "detail": {}}],
        "reward": 0.0,
        "finish": "stop",
        "source": "student",
        "student": {**said, "before": [-0.4] * len(own)},
        "terms": [term],
    }
