"""Extrapolation: which candidates are tried and kept, which weights move, what is counted, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import opd
from opd.axes.base import Objects
from opd.errors import ConfigError, DataError
from opd.language.run import LanguageRun
from opd.loop import Loop
from opd.output.run_log import RunLog
from opd.types import Metrics
from support.families import read_language
from support.interrupt import Interrupt
from support.models import make_model
from support.small_runs import PROMPTS, small_run


def run_file(out: Path, **changes: Any) -> dict[str, Any]:
    own = {
        "optimizer": {"lr": 1e-3, "steps": 9},
        "experimental": {"extrapolate": {"prompts": 16}},
        "checkpoint": {"every": 3},
    }
    return small_run(out, **(own | changes))


def a_loop(tmp_path: Path, **changes: Any) -> Loop:
    objects = Objects(student=make_model(0), teacher=make_model(1), prompts=PROMPTS)
    return LanguageRun.load(read_language(run_file(tmp_path / "out", **changes)), objects).assemble(
        RunLog(tmp_path / "m", [], [])
    )


def matrices(loop: Loop) -> dict[str, Tensor]:
    return {name: p for name, p in loop.student.model.named_parameters() if "proj" in name}


@pytest.mark.parametrize(("scores", "kept"), [([0.5, 0.4], 0), ([0.5, 0.6, 0.6], 1), ([0.1, 0.2, 0.3, 0.4, 0.2], 3)])
def test_candidates_are_kept_while_validation_improves(scores: list[float], kept: int, tmp_path: Path) -> None:
    loop, left = a_loop(tmp_path), list(scores)
    assert loop.extrapolation is not None

    def validate() -> tuple[Metrics, int]:
        return {"accuracy": left.pop(0)}, 10

    loop.extrapolation.validate = validate
    before = {name: p.detach().clone() for name, p in loop.student.model.named_parameters()}
    with torch.no_grad():
        for parameter in loop.student.model.parameters():
            parameter.add_(0.125)
    found = loop.extrapolation(4)
    assert found
    assert not left
    assert found.tokens == 10 * len(scores)
    for name, parameter in loop.student.model.named_parameters():
        step = 0.125 * (1 + 2 * kept if "proj" in name else 1)
        assert torch.allclose(parameter, before[name] + step, atol=1e-6), name
    assert loop.extrapolation.named.keys() == matrices(loop).keys()
    assert all(torch.equal(loop.extrapolation.previous[name], p) for name, p in matrices(loop).items())
    words = f"kept W + {2 * kept}Δ" if kept else "kept W;"
    assert found.text.startswith(words)


def test_it_runs_after_steps_2_to_the_n_and_undoes_a_candidate_exactly(tmp_path: Path) -> None:
    loop = a_loop(tmp_path)
    assert loop.extrapolation is not None
    calls: list[int] = []

    def validate() -> tuple[Metrics, int]:
        calls.append(step)
        return {"accuracy": 0.0}, 0

    loop.extrapolation.validate = validate
    with torch.no_grad():
        for parameter in loop.student.model.parameters():
            parameter.mul_(1.1)
    before = {name: p.detach().clone() for name, p in loop.student.model.named_parameters()}
    for step in range(1, 18):
        assert (loop.extrapolation(step) is None) == (step not in (1, 2, 4, 8, 16))
    assert sorted(set(calls)) == [1, 2, 4, 8, 16]
    assert all(torch.equal(p, before[name]) for name, p in loop.student.model.named_parameters())


@pytest.mark.slow
def test_without_answers_the_divergence_decides_and_its_tokens_count(tmp_path: Path) -> None:
    runs = {}
    for name, more in (("with", {"extrapolate": {"prompts": 16}}), ("without", {})):
        runs[name] = opd.train(
            run_file(tmp_path / name, experimental=more),
            student=make_model(0),
            teacher=make_model(1),
            prompts=PROMPTS,
        )
    events = [e for e in runs["with"].events if e["kind"] == "extrapolation"]
    assert [e["step"] for e in events] == [1, 2, 4, 8]
    assert any("kept W + " in e["text"] and "validation reverse_kl" in e["text"] for e in events)
    assert runs["with"].tokens > runs["without"].tokens + 4 * 2 * 16


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 5, 8])
def test_an_interrupted_run_resumes_to_the_same_bits(at: int, tmp_path: Path) -> None:
    def go(out: Path, **more: Any) -> opd.Result:
        return opd.train(run_file(out), student=make_model(0), teacher=make_model(1), prompts=PROMPTS, **more)

    whole = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", callbacks=[Interrupt(at)])
    assert go(tmp_path / "cut", resume=True).events == whole.events
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    assert all(torch.equal(t, expected[n]) for n, t in load_file(tmp_path / "cut" / "model.safetensors").items())


def test_prompts_that_cannot_validate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"experimental.extrapolate compares by accuracy or by the divergence"):
        a_loop(tmp_path, teacher={"weights": "frozen", "view": "hint"})
    loop = a_loop(tmp_path)
    assert loop.extrapolation is not None
    loop.extrapolation.validate = lambda: ({}, 0)
    with pytest.raises(DataError, match="none of the training prompts drawn for validation got a reward"):
        loop.extrapolation(1)


@pytest.mark.slow
def test_a_recipe_extrapolates_by_one_key(tmp_path: Path) -> None:
    small = {
        "optimizer.steps": 2,
        "rollout.prompts_per_step": 4,
        "eval.prompts.limit": 8,
        "eval.diagnostics": 0,
        "log": [],
    }
    result = opd.train("opd", {**small, "experimental.extrapolate.prompts": 8, "out": str(tmp_path / "out")})
    assert [e["step"] for e in result.events if "validation accuracy" in e["text"]] == [1, 2]
