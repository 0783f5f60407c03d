"""The run file's attention reaches every model, or is refused with one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

import opd
from opd.errors import ConfigError
from opd.models.attention import use_attention
from opd.models.packing import packs
from support.architectures import make
from support.models import make_model
from support.small_runs import PROMPTS, small_run


def test_student_and_teacher_of_a_run_compute_it(tmp_path: Path) -> None:
    student, teacher = make_model(0), make_model(1)
    tree = small_run(tmp_path, attention="eager", optimizer={"steps": 1}, report=False)
    opd.train(tree, student=student, teacher=teacher, prompts=PROMPTS)
    assert {m.model.config._attn_implementation for m in (student, teacher)} == {"eager"}


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_what_needs_a_gpu_is_refused_on_a_cpu(tmp_path: Path, attention: str) -> None:
    tree = small_run(tmp_path, attention=attention, device="cpu")
    with pytest.raises(ConfigError, match=rf"^attention: {attention} needs a GPU, and device is cpu\. Fix: "):
        opd.train(tree, student=make_model(0), teacher=make_model(1), prompts=PROMPTS)


def test_what_the_architecture_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^attention: sdpa cannot be used for student 'tiny MPT' \(.+\)\. Fix: "):
        use_attention(make("MPT"), "sdpa", "student")


def test_packing_is_proven_again() -> None:
    model = make_model(0)
    assert packs(model)
    use_attention(model, "eager", "student")
    assert packs(model)
