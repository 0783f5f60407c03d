"""Print recorded held-out calls of unknown tools, and the probability of the right name: python show.py RUN."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Story:
    """A held-out prompt whose first answer called an unknown tool, and what the hint and the training changed.

    Attributes:
        alone: probability of the right name before training.
        hinted: with the hint above the call.
        trained: after training, without the hint.
    """

    question: str
    before: str
    hint: str
    right: str
    alone: float
    hinted: float
    trained: float
    after: str
    correct: bool

    def lines(self) -> Iterator[str]:
        """As text."""
        yield self.question
        yield f"before: {self.before}"
        yield f"hint:   {self.hint}"
        yield f"P({self.right}): {self.alone:.3f} before"
        yield f"        {self.hinted:.3f} before, with the hint"
        yield f"        {self.trained:.3f} after, without the hint"
        yield f"after:  {self.after}"


def story(
    row: Mapping[str, Any], later: Mapping[str, Any], task: Mapping[str, Any], models: Sequence[LanguageModel]
) -> Story:
    """From a recorded rollout before training, the one after it, and the models of both."""
    event = next(event for event in row["events"] if event["kind"] == "unknown_tool")
    fault, right = event["span"][0], task["calls"][0]["name"]
    turn = max(start for start, _ in row["turns"] if start <= fault)
    context = next(c for c in row["terms"][0]["contexts"] if c["span"][0] in (turn, fault))
    hint = context["read"].removeprefix("user").strip()
    before, after = models
    history, call = (*row["prompt_ids"], *row["ids"][:turn]), row["ids"][turn:fault]
    hinted = Chat(before.tokenizer).above_turn(history, {"role": "user", "content": hint})
    return Story(
        question=task["messages"][-1]["content"],
        before="".join(row["text"]),
        hint=hint,
        right=right,
        alone=probability(before, [*history, *call], right),
        hinted=probability(before, [*hinted, *call], right),
        trained=probability(after, [*history, *call], right),
        after="".join(later["text"]),
        correct=bool(later["correct"]),
    )


def stories(run: Path) -> Iterator[Story]:
    """Of all held-out rollouts that a run of hints has recorded."""
    settings = json.loads((run / "run.json").read_text())
    models = [load(str(path), key="student") for path in (settings["student"], run)]
    tasks = [json.loads(line) for line in Path(settings["eval"]["prompts"]["path"]).read_text().splitlines()]
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if row["of"] == "eval"]
    last = {row["prompt"]: row for row in held_out if row["step"] == held_out[-1]["step"]}
    for row in held_out:
        if row["step"] == 0 and any(event["kind"] == "unknown_tool" for event in row["events"]):
            yield story(row, last[row["prompt"]], tasks[int(row["prompt"]) - 1], models)


if __name__ == "__main__":
    for each in stories(Path(sys.argv[1])):
        print("\n".join(each.lines()) + "\n")
