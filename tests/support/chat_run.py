"""A real run whose student thinks, calls tools and answers in many scripts: for tests of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import opd
from opd.models.chat import Chat
from support.chat_templates import make_chat_tokenizer
from support.models import make_model
from support.plays import Plays

SYSTEM = "You are a careful assistant. " + "Think before you call a tool, and answer in the user's language. " * 4

WRONG = (
    '<think>\nI should multiply.\n</think>\n<tool_call>{"name": "multiply", "arguments": {"a": 1, "b": 2}}</tool_call>'
)
RIGHT = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'

CHINESE = "答案是三。你好，世界！"
ARABIC = "الجواب هو ثلاثة، شكراً لك"
EMOJI = "It is 3 👩‍🚀 👍🏽 🇩🇪"
HIDDEN = "three\u202e eerht"

ANSWERS = (CHINESE, ARABIC, EMOJI, HIDDEN)

EARLIER = [
    {"role": "user", "content": "Hello! " + "I have a long story to tell first. " * 14},
    {"role": "assistant", "content": "Go on."},
]

QUESTION = "What is 1 + 2? Please answer in my language."


def chat_run(folder: Path, *, tokenizer: Any = None, steps: int = 1, **changes: Any) -> Path:
    """Prompts with a system prompt, earlier turns and tools; a rollout has a wrong call, a hint and a right call."""
    tokenizer = tokenizer or make_chat_tokenizer("qwen 3")
    rows = [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                *EARLIER,
                {"role": "user", "content": f"{QUESTION} ({n})"},
            ],
            "calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}],
        }
        for n in range(4)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = [text for answer in ANSWERS for text in (WRONG, RIGHT, answer)]
    opd.train(
        "hint",
        {
            "prompts": {"path": str(file), "tools": "support.five_tools:FUNCTIONS"},
            "eval": {"prompts": None, "every": 1},
            "rollout.prompts_per_step": 4,
            "rollout.max_new_tokens": 900,
            "optimizer.steps": steps,
            "optimizer.lr": 1e-6,
            "report": {"prompts": 4},
            "log": [],
            "out": str(folder / "out"),
            **changes,
        },
        student=make_model(tokenizer=tokenizer, positions=8192),
        engine=_Turns(Chat(tokenizer), said),
    )
    return folder / "out"


class _Turns(Plays):
    """Says the texts by the number of assistant turns in each context, a rollout's own answer last."""

    def __init__(self, chat: Chat, said: list[str]) -> None:
        super().__init__(chat, *said)
        self.chat = chat

    def generate(self, contexts: Any, max_new_tokens: Any, **_: Any) -> Any:
        from opd.types import Generation

        found = []
        for context in contexts:
            text = self.chat.decode(context, skip_special_tokens=False)
            number = next(n for n in range(len(ANSWERS)) if f"({n})" in text)
            turn = min(text.rpartition(f"({number})")[2].count("<tool_call>"), 2)
            ids = self.turns[3 * number + turn]
            found.append(Generation(ids, (-1.0,) * len(ids), True))
        return found
