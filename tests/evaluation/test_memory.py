"""The estimate of a run's memory against the allocator's record of two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd.axes.base import Objects
from opd.engines.hf import HFEngine
from opd.evaluation.memory import estimate, kept_for_backward, size_of
from opd.language.run import LanguageRun
from opd.output.run_log import RunLog
from opd.types import Generation
from support.families import read_language
from support.memory import peak_of
from support.models import make_model
from support.small_runs import PROMPTS, merged, small_run

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "activations count most": ({"hidden": 128, "layers": 4}, {}),
    "micro-batches": ({"hidden": 128, "layers": 4}, {"optimizer": {"micro_batch": 4}}),
    "passes bounded by tokens": ({"hidden": 128, "layers": 4}, {"optimizer": {"micro_tokens": 216}}),
    "weights count most": (
        {"hidden": 256, "layers": 6},
        {"optimizer": {"micro_batch": 1}, "rollout": {"prompts_per_step": 2}},
    ),
    "activations computed again": (
        {"hidden": 128, "layers": 8},
        {"optimizer": {"micro_batch": 2, "gradient_checkpointing": True}},
    ),
    "a vocabulary of 8,000": ({"hidden": 64, "vocab": 8000}, {"optimizer": {"micro_batch": 4}}),
    "bfloat16": ({"hidden": 128, "layers": 4}, {"dtype": "bfloat16", "optimizer": {"micro_batch": 4}}),
}


class Tireless(HFEngine):
    """Writes every answer to its limit, as the estimate assumes."""

    def generate(self, *args: Any, stop_ids: frozenset[int], **kwargs: Any) -> list[Generation]:
        written = super().generate(*args, stop_ids=frozenset(), **kwargs)
        return [w._replace(ids=tuple(5 if i in stop_ids else i for i in w.ids)) for w in written]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_estimate_is_near_the_peak_of_two_steps(tmp_path: Path, name: str) -> None:
    shape, changes = RUNS[name]
    tree = merged(small_run(tmp_path / "out", rollout={"prompts_per_step": 8, "max_new_tokens": 60}), changes)
    student, teacher = (make_model(seed, **shape) for seed in (0, 1))
    for model in (student, teacher):  # rows of the head that no token has are not read
        model.tokenizer.add_tokens([f"<{n}>" for n in range(shape.get("vocab", 0) - len(model.tokenizer))])
    objects = Objects(student=student, teacher=teacher, prompts=PROMPTS * 4, engine=Tireless(student))
    run = LanguageRun.load(read_language(tree, objects.keys()), objects)
    need = estimate(run.context)
    loop = run.assemble(RunLog(tmp_path / "metrics.jsonl", [], []))
    measured = peak_of(lambda: [loop._step(step) for step in (0, 1)])
    made_before = need.weights + need.copies + need.teachers
    assert measured * 0.85 < need.peak - made_before < measured * 1.15


def test_parameters_are_not_activations_and_shared_storage_counts_once() -> None:
    model = make_model(0)
    kept = kept_for_backward(model)
    assert kept.bytes(64) == pytest.approx(64 * kept.per_token + kept.fixed)
    assert kept.fixed < size_of(model.model.parameters())
    head = model.head_VD
    assert size_of([head, head.T, head[:2]]) == head.numel() * 4


def test_counting_leaves_the_model_as_it_was() -> None:
    model = make_model(0)
    model.model.train()
    kept_for_backward(model)
    assert model.model.training
    assert all(p.grad is None for p in model.model.parameters())
