"""Print recorded held-out calls of unknown tools, and the probability of the right name: python show.py SFT HINT."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from opd.models.chat import Chat
from opd.models.language import LanguageModel
from opd.models.loading import load

BEFORE_NAME = '<tool_call>{"name": "'


def probability(model: LanguageModel, context_ids: Sequence[int], name: str) -> float:
    """Probability that a model continues a call with this whole name."""
    chat = Chat(model.tokenizer)
    start, whole = (chat.insert_text_ids(text) for text in (BEFORE_NAME, f'{BEFORE_NAME}{name}",'))
    name_ids = whole[len(start) :]
    with torch.no_grad():
        logits = model.model(torch.tensor([[*context_ids, *name_ids]])).logits[0, -len(name_ids) - 1 : -1]
    picked = logits.float().log_softmax(-1).gather(1, torch.tensor(name_ids)[:, None])
    return float(picked.sum().exp())


def story(
    row: Mapping[str, Any], later: Mapping[str, Any], right: str, models: Sequence[LanguageModel]
) -> Iterator[str]:
    """A wrong call, its hint, the probabilities of the right name, and the call after training."""
    event = next(event for event in row["events"] if event["kind"] == "unknown_tool")
    turn, fault = max(start for start, _ in row["turns"] if start <= event["span"][0]), event["span"][0]
    context = next(c for c in row["terms"][0]["contexts"] if c["span"][0] in (turn, fault))
    hint = context["read"].removeprefix("user").strip()
    before, after = models
    history, call = (*row["prompt_ids"], *row["ids"][:turn]), row["ids"][turn:fault]
    hinted = Chat(before.tokenizer).above_turn(history, {"role": "user", "content": hint})
    yield f"before: {''.join(row['text'])}"
    yield f"hint:   {hint}"
    yield f"P({right}): {probability(before, [*history, *call], right):.3f} before"
    yield f"        {probability(before, [*hinted, *call], right):.3f} before, with the hint"
    yield f"        {probability(after, [*history, *call], right):.3f} after, without the hint"
    yield f"after:  {''.join(later['text'])}\n"


def main(sft: Path, hint: Path) -> None:
    """Print each story."""
    models = [load(str(path), key="student") for path in (sft, hint)]
    tasks = [json.loads(line) for line in (sft.parent / "held_out.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (hint / "rollouts.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if row["of"] == "eval"]
    last = {row["prompt"]: row for row in held_out if row["step"] == held_out[-1]["step"]}
    for row in held_out:
        if row["step"] == 0 and any(event["kind"] == "unknown_tool" for event in row["events"]):
            task = tasks[int(row["prompt"]) - 1]
            print(task["messages"][-1]["content"])
            print("\n".join(story(row, last[row["prompt"]], task["calls"][0]["name"], models)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
