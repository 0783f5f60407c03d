"""Worker of step.py: whole steps of TRL's DistillationTrainer (TRL 1.16), run in TRL's environment.

    python step_peer_trl.py STUDENT TEACHER PROMPTS.json SETTINGS.json

Its own rollouts (``model.generate``), no gradient checkpointing. The teacher's forward pass is inside its update; both
are timed apart. With ``bfloat16`` the student's weights are float32 under autocast, and the teacher's bfloat16.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from datasets import Dataset
from step_common import Check, Memory, clock
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

torch.set_num_threads(1)


class Steps(TrainerCallback):  # type: ignore[misc]
    """Seconds of each step, and of its parts."""

    def __init__(self, device: str, check: Check) -> None:
        self.found: list[dict[str, float]] = []
        self.memory = Memory(device)
        self.now = clock(device)
        self.check = check
        self.parts: dict[str, float] = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.memory.start()
        self.parts = {"rollout": 0.0, "teacher": 0.0, "tokens": 0.0}
        self.began = self.now()

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.check.compare(model.named_parameters())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = self.now() - self.began
        update = seconds - self.parts["rollout"] - self.parts["teacher"]
        self.found.append({**self.parts, "update": update, "step": seconds, "memory": self.memory.peak()})

    def timed(self, key: str, call: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = self.now()
            result = call(*args, **kwargs)
            if when(*args):
                self.parts[key] += self.now() - began
            if key == "rollout":
                self.parts["tokens"] += sum(map(len, result))
            return result

        return run


def main() -> None:
    student, teacher, prompts, settings = sys.argv[1:]
    given = json.loads(settings)
    half, on_cpu = given["dtype"] == "bfloat16", given["device"] == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder,
            max_steps=given["steps"],
            per_device_train_batch_size=given["micro_batch"],
            gradient_accumulation_steps=given["batch"] // given["micro_batch"],
            gradient_checkpointing=False,
            max_completion_length=given["limit"],
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            beta=1.0,
            learning_rate=1e-9,
            bf16=half,
            use_cpu=on_cpu,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            seed=given["seed"],
        )
        steps = Steps(given["device"], Check(given["check"]))
        trainer = DistillationTrainer(
            model=AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32),
            teacher_model=AutoModelForCausalLM.from_pretrained(
                teacher, dtype=torch.bfloat16 if half else torch.float32
            ),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": p} for p in json.loads(Path(prompts).read_text())]),
            processing_class=AutoTokenizer.from_pretrained(student, padding_side="left"),
            callbacks=[steps],
        )
        generate = trainer._generate_single_turn

        def answer(prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            return steps.check.take(prompt_ids) or generate(prompt_ids, *args, **kwargs)

        trainer._generate_single_turn = steps.timed("rollout", answer, lambda *_: True)
        trainer._get_last_hidden_state = steps.timed(
            "teacher", trainer._get_last_hidden_state, lambda model, *_: model is trainer.teacher_model
        )
        trainer.train()
    print(json.dumps([{**step, "error": steps.check.error} for step in steps.found]))


if __name__ == "__main__":
    main()
