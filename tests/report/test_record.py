"""Recorded rollouts: the numbers equal those of the loss, and recording does not change a run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import opd
from opd.losses import Support
from opd.losses.objectives import (
    CrossEntropy,
    DirectEstimate,
    FullVocabulary,
    HiddenStates,
    PolicyGradient,
    SeveralTeachers,
    per_token_losses,
)
from opd.models.language import LanguageModel
from opd.models.loading import load
from opd.report.data import run_data
from opd.report.files import ROLLOUTS, read_rollouts
from opd.report.preview import spaced_prompts, varied_rollouts
from opd.report.texts import Texts, difference
from opd.signals import FullSignal, HiddenSignal, SampledSignal, TokenSignal, TokenStates
from opd.teachers.by_domain import combined
from opd.types import Event, Prompt, Rollout, Signal, Span
from support.interrupt import Interrupt
from support.models import make_model

PROMPTS = [{"prompt": f"{a} {b} {c}"} for a in "abcd" for b in "efgh" for c in "ij"]


def train(out: Path, **changes: Any) -> opd.Result:
    tree: dict[str, Any] = {
        "student": "s",
        "prompts": {"path": "p.jsonl"},
        "teacher": {"model": "t"},
        "rollout": {"prompts_per_step": 8, "max_new_tokens": 6},
        "optimizer": {"lr": 1e-2, "steps": 6},
        "checkpoint": {"every": 2},
        "eval": {"every": 2},
        "log": [],
        "out": str(out),
    }
    more = {key: changes.pop(key) for key in ("callbacks", "resume") if key in changes}
    teacher = make_model(1, layers=3, hidden=48)
    return opd.train({**tree, **changes}, student=make_model(0), teacher=teacher, prompts=PROMPTS, **more)


def held_out(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "held_out.jsonl"
    path.write_text('{"prompt": "q r"}\n{"prompt": "s t"}\n{"prompt": "o p"}\n')
    return {"prompts": {"path": str(path)}, "every": 2}


@pytest.mark.slow
@pytest.mark.parametrize("measured", [True, False])
def test_weights_and_metrics_are_the_same_with_and_without_recording(tmp_path: Path, measured: bool) -> None:
    evaluated = held_out(tmp_path) if measured else {"every": 2}
    train(tmp_path / "with", eval=evaluated)
    train(tmp_path / "without", eval=evaluated, report=False)
    expected = load_file(tmp_path / "without" / "model.safetensors")
    assert all(torch.equal(t, expected[n]) for n, t in load_file(tmp_path / "with" / "model.safetensors").items())
    with_, without = (_metrics(tmp_path / name) for name in ("with", "without"))
    assert with_ == without
    assert (tmp_path / "with" / "report.html").exists()
    assert not (tmp_path / "without" / "report.html").exists()
    assert not (tmp_path / "without" / ROLLOUTS).exists()
    steps = {(row["step"], row["of"]) for row in read_rollouts(tmp_path / "with" / ROLLOUTS)}
    assert {(0, "eval"), (2, "eval"), (4, "eval"), (6, "eval"), (0, "train"), (2, "train"), (4, "train")} <= steps


def _metrics(out: Path) -> list[Any]:
    """All metrics except times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in (line.get("train") or line.get("eval")).items() if not k.endswith("_s")} for line in lines
    ]


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_interrupted_and_resumed_run_records_the_same_lines(tmp_path: Path, at: int) -> None:
    evaluated = held_out(tmp_path)
    train(tmp_path / "whole", eval=evaluated)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", eval=evaluated, callbacks=[Interrupt(at)])
    assert (tmp_path / "cut" / "report.html").exists()
    assert not run_data(tmp_path / "cut")["finished"]
    train(tmp_path / "cut", eval=evaluated, resume=True)
    whole, cut = (_by_key(tmp_path / name) for name in ("whole", "cut"))
    assert whole == cut


def _by_key(out: Path) -> dict[str, Any]:
    return {json.dumps([r["step"], r["of"], r.get("n", r.get("about"))]): r for r in read_rollouts(out / ROLLOUTS)}


@pytest.mark.slow
def test_ten_random_tokens_have_the_numbers_of_the_checkpoint(math_run: Path) -> None:
    """Compare the page with a float64 computation from the saved weights."""
    run = embedded(math_run)["runs"][0]
    student, teacher = load(str(math_run), key="student"), load("nano/math-teacher", key="teacher.model")
    last = max(r["step"] for r in run["rollouts"])
    places = [(r, k) for r in run["rollouts"] if r["step"] == last and r["of"] == "eval" for k in range(len(r["own"]))]
    prompts = {row["prompt"]: row["prompt_ids"] for row in read_rollouts(math_run / ROLLOUTS) if "n" in row}
    divergence = run["config"]["loss"]["divergence"]["type"]
    assert divergence in ("forward_kl", "reverse_kl")
    for rollout, k in random.Random(0).sample(places, 10):
        position = rollout["own"][k]
        ids = [*prompts[rollout["prompt"]], *rollout["ids"][:position]]
        log_p, log_q = _next(student, ids), _next(teacher, ids)
        token, term = rollout["ids"][position], rollout["terms"][0]
        row = term["position"].index(position)
        a, b = (log_q, log_p) if divergence == "forward_kl" else (log_p, log_q)
        said = term["teachers"][0]
        assert rollout["student"]["logprob"][k] == pytest.approx(log_p[token].item(), abs=2e-4)
        assert rollout["after"][k] == pytest.approx(log_p[token].item(), abs=2e-4)
        assert said["logprob"][row] == pytest.approx(log_q[token].item(), abs=2e-4)
        assert rollout["student"]["entropy"][k] == pytest.approx(-(log_p.exp() * log_p).sum().item(), abs=2e-4)
        assert term["loss"][row] == pytest.approx((a.exp() * (a - b)).sum().item(), abs=2e-4)
        shown = rollout["student"]["top"][k]
        for place, (number, logprob) in enumerate(zip(shown[::2], shown[1::2], strict=True)):
            best = int(log_p.argsort(descending=True)[place])
            assert run["vocabulary"][number] == Texts(student.tokenizer).one(best)
            assert logprob == pytest.approx(log_p[best].item(), abs=2e-4)


@torch.no_grad()
def _next(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model.model.double()(torch.tensor([ids])).logits[0, -1]
    return logits.log_softmax(-1)


def test_the_losses_of_training_rollouts_add_up_to_the_loss_of_the_step(tmp_path: Path) -> None:
    """If all rollouts of the batch are recorded, their losses sum to the step's loss."""
    train(tmp_path / "out", report={"prompts": 8})
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])["train"]
    rows = [r for r in read_rollouts(tmp_path / "out" / ROLLOUTS) if r["of"] == "train" and r["step"] == 0]
    terms = [term for row in rows for term in row["terms"] if term["name"] == "distill"]
    assert len(rows) == 8
    total = sum(w * x / term["count"] for term in terms for w, x in zip(term["weight"], term["loss"], strict=True))
    assert total == pytest.approx(first["distill"], rel=1e-3)


@pytest.mark.slow
def test_hints_are_recorded_with_their_span_and_inserted_tokens_are_masked(hint_run: Path) -> None:
    run = run_data(hint_run)
    hinted = [r for r in run["rollouts"] if any(t["contexts"] for t in r["terms"])]
    assert hinted
    for rollout in hinted:
        for context in (c for t in rollout["terms"] for c in t["contexts"]):
            assert "available tools" in context["read"]
            start, stop = context["span"]
            assert [start, stop] in rollout["turns"]
            assert any(e["span"] == context["span"] for e in rollout["events"])
            distilled = next(t for t in rollout["terms"] if t["name"] == "distill")["position"]
            assert {p for p in rollout["own"] if start <= p < stop} <= set(distilled)
    inserted = [r for r in run["rollouts"] if len(r["own"]) < len(r["ids"])]
    assert inserted
    assert all("tool" in "".join(r["text"]) for r in inserted)


@pytest.mark.slow
def test_each_of_several_teachers_is_recorded(tmp_path: Path) -> None:
    out = tmp_path / "out"
    models = {name: {"model": f"nano/{name}", "domains": ["math"]} for name in ("math-teacher", "math-biased")}
    several = {"teacher.models": models, "teacher.model": None, "prompts.domain": "math", "eval.prompts.domain": "math"}
    few = {
        "eval.prompts.limit": 8,
        "eval.diagnostics": 0,
        "rollout.prompts_per_step": 8,
        "report.prompts": 2,
        "log": [],
    }
    opd.train("opd", {**several, **few, "optimizer.steps": 1, "out": str(out)})
    rollout = run_data(out)["rollouts"][0]
    teachers = rollout["terms"][0]["teachers"]
    assert [t["name"] for t in teachers] == ["math-teacher", "math-biased"]
    assert all(len(t["top"]) == len(t["row"] if "row" in t else rollout["own"]) for t in teachers)


def embedded(out: Path) -> Any:
    page = (out / "report.html").read_text(encoding="utf-8")
    start = page.index('<script type="application/json" id="data">')
    return json.loads(page[page.index(">", start) + 1 : page.index("</script>", start)])


T, D, V = 12, 6, 17


def _signal() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.arange(T) // 5, torch.arange(T) % 5, torch.randint(V, (T,))


def _full() -> FullSignal:
    return FullSignal(*_signal(), torch.randn(T, D), torch.randn(V, D))


def _sampled() -> SampledSignal:
    return SampledSignal(*_signal(), -torch.rand(T), -torch.rand(T), torch.zeros(T))


def _several() -> Signal:
    whole = _full()
    return combined([whole, whole.take(whole.rollout_T == 1)], torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 0.0]]))


CASES: dict[str, tuple[Any, Callable[[], Signal]]] = {
    "forward": (FullVocabulary(), _full),
    "top_k": (FullVocabulary(divergence="reverse_kl", support=Support(3, whose="teacher", rest="tail")), _full),
    "several": (SeveralTeachers(inner=FullVocabulary()), _several),
    "mixed": (SeveralTeachers(inner=FullVocabulary(), combine="geometric"), _several),
    "policy_gradient": (PolicyGradient(discount=0.9, clip=(0.2, 0.2)), _sampled),
    "k2": (DirectEstimate(), _sampled),
    "hidden": (HiddenStates(), lambda: HiddenSignal(*_signal(), torch.randn(T, 2, D))),
    "tokens": (CrossEntropy(), lambda: TokenSignal(*_signal())),
}


@pytest.mark.parametrize("case", CASES)
def test_the_losses_per_position_add_up_to_the_objective_under_any_weights(case: str) -> None:
    objective, make = CASES[case]
    hidden_TD, head_VD = torch.randn(T, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    signal, states, weight_T = make(), TokenStates(hidden_TD, head_VD, torch.randn(T, 2, D)), torch.rand(T)
    with torch.no_grad():
        expected = objective(states, signal, weight_T)
        loss_T = per_token_losses(objective, states, signal)
        alone = objective(states, signal, torch.eye(T)[3])
    assert loss_T @ weight_T == pytest.approx(expected.item(), rel=1e-5)
    assert loss_T[3].item() == pytest.approx(alone.item(), rel=1e-5)
    assert hidden_TD.grad is None
    assert head_VD.grad is None


def test_spaced_prompts_alternate_between_domains_and_are_evenly_spaced() -> None:
    prompts = [Prompt(id=f"{d}{i}", text="x", domain=d) for d, n in (("a", 100), ("b", 2)) for i in range(n)]
    assert [p.id for p in spaced_prompts(prompts, 5)] == ["a0", "b0", "a33", "b1", "a66"]
    assert len(spaced_prompts(prompts[:3], 6)) == 3


def test_varied_rollouts_differ_in_domain_reward_ending_and_events() -> None:
    def rollout(reward: float, *kinds: str) -> Rollout:
        events = tuple(Event(kind, 0, Span(0, 1)) for kind in kinds)
        return Rollout(
            Prompt(id="p", text="x"), (1,), (2,), (True,), (-1.0,), (Span(0, 1),), "stop", events=events, reward=reward
        )

    batch = [rollout(1.0)] * 5 + [rollout(0.0, "unknown_tool"), rollout(0.0), rollout(1.0, "unknown_tool")]
    assert varied_rollouts(batch, 4) == [0, 5, 6, 7]
    assert varied_rollouts(batch, 20) == list(range(8))


def test_the_difference_of_two_contexts() -> None:
    assert difference([1, 2, 9, 9, 3], [1, 2, 3]) == (2, 4, 2)
    assert difference([1, 2, 3], [1, 2, 3]) == (3, 3, 3)
    assert difference([7, 8, 3], [1, 2, 3]) == (0, 2, 2)
    assert difference([1, 1, 1], [1]) == (1, 3, 1)
