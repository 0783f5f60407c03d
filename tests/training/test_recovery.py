"""Symptoms of a collapse, and ruined runs of bundled models that recovery detects and rolls back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import opd
from opd.axes.base import Objects
from opd.evaluation.metrics import entropy
from opd.language.run import LanguageRun
from opd.output.run_log import RunLog
from opd.training.actions import Continue, RollBack
from opd.training.guards import SYMPTOMS, Watch, typical, watched
from opd.training.recovery import Recovery
from opd.training.state import State
from opd.types import Prompt, Rollout, Span
from support import ruined_runs
from support.altered import train_altered
from support.families import read_language
from support.interrupt import Interrupt
from support.models import make_model
from support.slow import slow_but
from support.small_runs import PROMPTS, small_run

FIRST = {
    "accuracy": 0.5,
    "kl": 0.2,
    "entropy": 0.4,
    "length": 30.0,
    "truncation_rate": 0.1,
    "repetition_rate": 0.0,
}
WATCH = Watch(prompts=64)


def collapsed(now: Mapping[str, float], *, top: float = 0.5, first: Mapping[str, float] = FIRST) -> str | None:
    """The symptom that three such steps show."""
    seen = WATCH.collapsed(first, top, [now] * 3)
    return seen[0] if seen else None


THRESHOLDS = [
    ("kl_vanished", "kl", 0.021, 0.019),
    ("kl_exploded", "kl", 0.59, 0.61),
    ("entropy_collapsed", "entropy", 0.041, 0.039),
    ("entropy_exploded", "entropy", 1.99, 2.01),
    ("repeating", "repetition_rate", 0.19, 0.21),
    ("too_long", "length", 59.0, 61.0),
    ("truncated", "truncation_rate", 0.34, 0.36),
]


@pytest.mark.parametrize(("name", "figure", "within", "beyond"), THRESHOLDS)
def test_a_symptom_counts_when_the_reward_has_fallen(name: str, figure: str, within: float, beyond: float) -> None:
    worse = {**FIRST, "accuracy": 0.2}
    assert collapsed({**worse, figure: within}) is None
    assert collapsed({**worse, figure: beyond}) == name
    assert collapsed({**FIRST, figure: beyond}) is None


@pytest.mark.parametrize(("name", "figure", "within", "beyond"), THRESHOLDS)
def test_without_rewards_a_text_symptom_counts_alone_and_any_other_needs_a_growing_kl(
    name: str, figure: str, within: float, beyond: float
) -> None:
    first = {key: value for key, value in FIRST.items() if key != "accuracy"}
    of_text = name in ("repeating", "too_long", "truncated")
    assert collapsed({**first, figure: beyond}, first=first) == (name if of_text or name == "kl_exploded" else None)
    if figure != "kl":
        assert collapsed({**first, figure: beyond, "kl": 0.21}, first=first) == name


def test_an_accuracy_that_may_differ_by_chance_confirms_no_symptom() -> None:
    silent = {**FIRST, "kl": 0.0}
    assert collapsed({**silent, "accuracy": 0.36}) is None
    assert collapsed({**silent, "accuracy": 0.33}) == "kl_vanished"
    assert Watch(prompts=8).collapsed(FIRST, 0.5, [{**silent, "accuracy": 0.2}] * 3) is None
    assert collapsed({**silent, "accuracy": 0.91}, top=1.0) is None
    assert Watch(prompts=8).collapsed(FIRST, 1.0, [{**silent, "accuracy": 0.8}] * 3) is None  # of 8, at 100 %
    assert collapsed({**silent, "accuracy": 0.87}, top=1.0) == "kl_vanished"


def test_one_bad_step_is_not_enough_and_the_sentence_has_the_values() -> None:
    bad = {**FIRST, "accuracy": 0.0, "length": 64.0}
    assert WATCH.collapsed(FIRST, 0.5, [bad, bad]) is None
    assert WATCH.collapsed(FIRST, 0.5, [FIRST, FIRST, bad, FIRST, bad]) is None
    assert WATCH.collapsed(FIRST, 0.5, [FIRST, FIRST, bad, bad, bad]) == (
        "too_long",
        "the rollouts' length went from 30.0 to 64.0, and their accuracy from 50.0% at its best to 0.0%",
    )


def steps(**metrics: list[float]) -> list[dict[str, float]]:
    return [dict(zip(metrics, values, strict=True)) for values in zip(*metrics.values(), strict=True)]


def test_a_mean_reward_confirms_a_symptom_beyond_its_own_scatter() -> None:
    first = {"reward": -3.0, "kl": 0.2}
    quiet = steps(reward=[-3.0, -3.1, -2.9, -3.0, -2.9, -3.1, -2.9, -4.0, -4.0, -4.0], kl=[0.2] * 5 + [0.9] * 5)
    seen = WATCH.collapsed(first, -3.0, quiet)
    assert seen is not None
    assert seen[1].endswith("to 0.9000, and their mean reward from -3.000 at its best to -4.000")
    loud = steps(reward=[-3.0, -4.1, -2.9, -4.0, -2.9, -4.1, -2.9, -4.0, -4.0, -4.0], kl=[0.2] * 5 + [0.9] * 5)
    assert WATCH.collapsed(first, -3.0, loud) is None
    steady = steps(reward=[-3.0] * 10, kl=[0.2] * 5 + [0.9] * 5)
    assert WATCH.collapsed(first, -3.0, steady) is None


def test_a_change_within_a_metrics_own_scatter_is_no_symptom() -> None:
    lengths = [10.0, 60.0, 15.0, 80.0, 20.0, 90.0, 12.0, 70.0, 40.0, 75.0]
    assert WATCH.collapsed({"length": 20.0}, 0.0, steps(length=lengths)) is None
    assert WATCH.collapsed({"length": 20.0}, 0.0, steps(length=[21.0, 20.0, 19.0, 20.0, 21.0] + [70.0] * 5)) is not None


def test_a_few_steps_have_no_scatter_that_could_hide_a_symptom() -> None:
    assert WATCH.collapsed({"length": 20.0}, 0.0, steps(length=[70.0, 30.0, 80.0])) is not None


def test_weights_are_proven_a_step_later_where_rollouts_are_a_step_older() -> None:
    healthy = []
    for lag in (0, 1):
        state = State(step=3)
        Recovery(WATCH, lag=lag).after_step(state, {**FIRST, "tokens": 1.0}, [])
        healthy.append(state.healthy)
    assert healthy == [2, 1]


GOOD = {**FIRST, "tokens": 1.0}
RECOVERY = Recovery(WATCH, times=2)


def test_without_evaluations_the_rollouts_prove_the_weights() -> None:
    for times, proven in ((0, 2), (2, 0)):
        state = State(step=3)
        Recovery(WATCH, times=times).after_step(state, GOOD, [])
        assert (state.healthy, state.proven) == (2, proven)


def test_a_run_that_a_guard_has_stopped_is_not_judged_by_its_rollouts_too() -> None:
    for stopped_by, seen in (("non_finite", 0), ("idle", 1), (None, 1)):
        state = State(step=3, stopped_by=stopped_by)
        RECOVERY.after_step(state, GOOD, [])
        assert len(state.recent) == seen


def test_a_limited_number_of_steps_is_remembered() -> None:
    state = State()
    for state.step in range(1, 40):
        RECOVERY.after_step(state, {**GOOD, "length": float(state.step)}, [])
    assert [figures["length"] for figures in state.recent] == [float(step) for step in range(15, 40)]


def back(state: State, *, steps: int = 20) -> RollBack | Continue:
    return RECOVERY.after_stop(state, [], steps=steps, averaged=False)


def test_a_rollback_returns_to_weights_that_the_finding_does_not_doubt() -> None:
    """What an evaluation finds needs weights that an evaluation has proven, and what rollouts find healthy ones."""
    found = [back(State(step=9, healthy=6, proven=4, stopped_by=why)) for why in ("collapse", "kl_exploded", None)]
    assert [one.step if isinstance(one, RollBack) else one for one in found] == [4, 6, Continue()]


def test_a_step_is_rolled_back_once() -> None:
    assert isinstance(back(State(step=9, rolled_back=8, stopped_by="too_long")), RollBack)
    assert back(State(step=9, rolled_back=9, stopped_by="too_long")) == Continue()


@pytest.mark.parametrize(
    ("numbers", "text", "goes_on"),
    [
        ({"step": 9}, "learning rate times 0.3", True),
        ({"step": 20}, "the run ends, for no step is left", False),
        ({"step": 9, "rollbacks": 2}, "the run ends, for no rollback is left", False),
    ],
)
def test_a_rollback_goes_on_while_steps_and_rollbacks_are_left(
    numbers: dict[str, Any], text: str, goes_on: bool
) -> None:
    found = back(State(healthy=6, stopped_by="too_long", **numbers))
    assert isinstance(found, RollBack)
    assert (found.then, found.resume) == (text, goes_on)


@pytest.mark.parametrize(
    ("recover", "before", "watches"),
    [({}, {"accuracy": 0.5}, True), (None, {"accuracy": 0.5}, False), (None, {"length": 5.0}, True), (None, {}, True)],
)
def test_rollouts_are_watched_where_no_evaluation_judges_or_recovery_is_on(
    recover: dict[str, Any] | None, before: dict[str, float], watches: bool, tmp_path: Path
) -> None:
    tree = run_file(tmp_path / "out", guards={"recover": recover})
    objects = Objects(student=make_model(0), teacher=make_model(1), prompts=PROMPTS)
    loop = LanguageRun.load(read_language(tree), objects).assemble(RunLog(tmp_path / "metrics.jsonl", [], []))
    loop.state.before = before
    assert bool(loop._watching) == watches


def test_healthy_judges_a_single_step() -> None:
    assert WATCH.healthy(FIRST, 0.5, {**FIRST, "accuracy": 0.4, "kl": 0.0})
    assert not WATCH.healthy(FIRST, 0.5, {**FIRST, "accuracy": 0.3})
    assert not WATCH.healthy({"length": 30.0}, 0.0, {"length": 61.0})


def test_the_watched_kl_is_a_mean_over_all_of_the_students_tokens() -> None:
    figures = {"length": 9.0, "distill": 0.5, "distill_share": 0.1, "accuracy": 0.3, "entropy": math.nan, "loss": 1.0}
    assert watched(figures) == {"length": 9.0, "accuracy": 0.3, "kl": 0.05}
    assert watched({"length": 9.0, "distill_share": 0.0})["kl"] == 0.0
    assert watched({"distill_share": 1.0, "distill": 2.0}) == {}
    assert typical([{"kl": 9.0}] * 3 + [{"kl": k} for k in (5.0, 1.0, 2.0, 3.0)] + [{"length": 1.0}]) == {
        "kl": 2.5,
        "length": 1.0,
    }


def test_entropy_ignores_inserted_tokens() -> None:
    whole = Rollout(
        prompt=Prompt("p"),
        prompt_ids=(1,),
        completion_ids=(2, 3, 4),
        completion_mask=(True, False, True),
        logprobs=(-1.0, math.nan, -3.0),
        turns=(Span(0, 3),),
        finish="stop",
    )
    assert entropy([whole, dataclasses.replace(whole, logprobs=(-2.0, math.nan, -2.0))]) == 2.0


QUICK = {
    "rollout.prompts_per_step": 32,
    "rollout.max_new_tokens": 56,
    "eval.max_new_tokens": 56,
    "eval.prompts.limit": 32,
    "eval.every": 20,
}
EARLY = {"optimizer.lr": 1e-3, "optimizer.schedule": "constant", "optimizer.warmup": 0}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "live teacher, no anchor": ({"optimizer.lr": 2e-3, "optimizer.steps": 18, "rollout.max_new_tokens": 40}, 0),
    "learning rate × 100": ({"optimizer.steps": 5, "optimizer.warmup": 0}, 0),
    "the teacher rewards repetition": ({**EARLY, "optimizer.steps": 10}, 3),
    "the teacher wants no end": ({**EARLY, "optimizer.steps": 15, "rollout.max_new_tokens": 96}, 3),
    "weights that are not a number": ({**EARLY, "optimizer.steps": 6}, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_ruined_run_is_caught_and_ends_no_worse_than_it_began(name: str, tmp_path: Path) -> None:
    overrides, first = CASES[name]
    scenario = dataclasses.replace(ruined_runs.SCENARIOS[name], first=first, last=first if "number" in name else 10**6)
    on = ruined_runs.run(scenario, tmp_path, {**QUICK, **overrides, **ruined_runs.RECOVER})
    off = ruined_runs.run(scenario, tmp_path, {**QUICK, **overrides, **ruined_runs.GUARDS_OFF})
    began = first if "number" in name else ruined_runs.onset(ruined_runs.curve(off), prompts=32)
    seen = next(e for e in on.events if e["kind"] in {*SYMPTOMS, "non_finite"})
    assert began <= seen["step"] <= began + 10
    assert "rollback" in [e["kind"] for e in on.events if seen["step"] <= e["step"] <= seen["step"] + 1]
    assert on.after["accuracy"] >= on.before["accuracy"]
    assert off.after["accuracy"] < off.before["accuracy"] / 2 or off.stopped_by == "non_finite"


def run_file(out: Path, **changes: Any) -> dict[str, Any]:
    """A tiny run whose learning rate is far too high; without rewards, so the KL speaks for itself."""
    own = {
        "optimizer": {"lr": 1.0, "steps": 14},
        "checkpoint": {"every": 2},
        "guards": {"recover": {"thresholds": {"kl_exploded": 1.5}, "lr": 0.5}},
    }
    return small_run(out, **(own | changes))


def train(out: Path, *, callbacks: Any = (), resume: bool = False, alter: Any = None, **changes: Any) -> opd.Result:
    answered = [{**row, "answer": "k l"} for row in PROMPTS]
    averaged = "weights" in changes.get("teacher", {})
    return train_altered(
        alter,
        run_file(out, **changes),
        student=make_model(0),
        teacher=None if averaged else make_model(1, layers=3, hidden=48),
        prompts=answered if averaged else PROMPTS,
        resume=resume,
        callbacks=callbacks,
    )


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    expected = weights(other)
    return all(torch.equal(tensor, expected[name]) for name, tensor in weights(one).items())


def kinds(result: opd.Result) -> list[str]:
    return [event["kind"] for event in result.events]


TEACHERS = {
    "model": {"model": "t"},
    "ema": {"weights": {"type": "ema", "decay": 0.5}, "view": "privileged"},
    "live": {"weights": "live", "view": "privileged"},
}


@pytest.fixture(scope="module", params=TEACHERS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, opd.Result]:
    """A run left alone, by its kind of teacher."""
    return request.param, train(tmp_path_factory.mktemp(request.param) / "out", teacher=TEACHERS[request.param])


@pytest.mark.parametrize("at", slow_but([2, 4, 7, 11], 7))
@pytest.mark.slow
def test_a_run_killed_around_its_rollbacks_resumes_to_the_same_bits(
    whole: tuple[str, opd.Result], at: int, tmp_path: Path
) -> None:
    teacher, expected = TEACHERS[whole[0]], whole[1]
    assert kinds(expected).count("rollback") > 1
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", teacher=teacher, callbacks=[Interrupt(at)])
    resumed = train(tmp_path / "cut", teacher=teacher, resume=True)
    assert same(tmp_path / "cut", expected.out)
    assert (resumed.events, resumed.steps, resumed.tokens) == (expected.events, expected.steps, expected.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("weights_of", ["model", "live"])
def test_a_healthy_run_is_the_same_with_and_without_recovery(weights_of: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"lr": 1e-3, "steps": 4}}
    if weights_of == "live":
        changes["teacher"] = {"weights": "live", "view": "privileged"}
    train(tmp_path / "on", **changes, guards={"recover": {}})
    train(tmp_path / "off", **changes, guards={})
    assert same(tmp_path / "on", tmp_path / "off")


def test_each_rollback_lowers_the_learning_rate_and_raises_the_anchor_until_none_is_left(tmp_path: Path) -> None:
    result = train(tmp_path / "out", guards={"recover": {"thresholds": {"kl_exploded": 1.5}, "lr": 0.5, "times": 2}})
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: row["train"] for row in rows if "train" in row}
    back = [event["step"] for event in result.events if event["kind"] == "rollback"]
    assert len(back) == 3
    assert [steps[step]["lr"] for step in back] == [1.0, 0.5, 0.25]
    assert ["anchor" in steps[step] for step in back] == [False, True, True]
    assert "anchor 0.2" in result.events[1]["text"]
    assert "anchor 0.4" in result.events[3]["text"]
    assert result.stopped_by == "kl_exploded"
    assert result.steps == back[-1]
    assert result.events[-1]["text"].endswith("the run ends, for no rollback is left")
    assert [row["event"] for row in rows if "event" in row] == [
        {"kind": event["kind"], "text": event["text"]} for event in result.events
    ]


@pytest.mark.slow
def test_one_update_that_is_not_finite_is_skipped_and_several_are_a_collapse(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"lr": 1e-3, "steps": 8}, "guards": {"max_skipped": 3, "recover": {}}}

    poison = {last: partial(ruined_runs.sabotaged, strike=ruined_runs.no_number, first=2, last=last) for last in (2, 4)}
    once = train(tmp_path / "once", alter=poison[2], **changes)
    assert kinds(once) == ["non_finite"]
    often = train(tmp_path / "often", alter=poison[4], **changes)
    assert kinds(often) == ["non_finite"] * 4 + ["rollback"]
    assert (often.steps, often.stopped_by) == (8, None)


def test_after_a_rollback_only_a_best_evaluation_refreshes_the_teacher(tmp_path: Path) -> None:
    tree = run_file(tmp_path / "out", teacher={"weights": "ema", "view": "privileged"})
    rows = [{**row, "answer": "k l"} for row in PROMPTS]
    objects = Objects(student=make_model(0), prompts=rows)
    loop = LanguageRun.load(read_language(tree), objects).assemble(RunLog(tmp_path / "metrics.jsonl", [], []))
    assert loop.recovery is not None
    assert loop.average is not None
    loop.run()
    state, teacher = loop.state, next(loop.average.average.parameters())
    live = next(loop.student.model.parameters())
    assert state.rollbacks
    state.stopped_by, state.best_step = None, state.step
    state.before, state.after = {"length": 6.0, "accuracy": 0.1}, {"length": 13.0, "accuracy": 0.2}
    with torch.no_grad():
        live.add_(1.0)
    assert loop.recovery.after_evaluation(state, None, averaged=True) == Continue()
    state.after = {"length": 7.0, "accuracy": 0.2}
    assert loop.recovery.after_evaluation(state, None, averaged=False) == Continue()
    state.best_step = state.step - 1
    assert loop.recovery.after_evaluation(state, None, averaged=True) == Continue()
    state.best_step = state.step
    loop._act(loop.recovery.after_evaluation(state, None, averaged=True))
    assert torch.equal(teacher, live)
    assert state.events[-1]["kind"] == "refresh"


NAMES = ("kl_exploded", "truncated", "too_long", "repeating", "entropy_exploded", "kl_vanished", "entropy_collapsed")


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.slow
def test_without_an_evaluation_that_judges_a_collapsed_run_ends_with_its_last_good_weights(
    judged: bool, tmp_path: Path
) -> None:
    """The student's weights are spoilt after step 14. Where held-out prompts judge the run, its rollouts do not."""
    changes: dict[str, Any] = {
        "optimizer": {"lr": 1e-4, "steps": 30},
        "checkpoint": {"every": 4},
        "guards": {},
        "eval": {"every": 10, "diagnostics": 0, "divergence": judged},
    }
    spoil = partial(ruined_runs.sabotaged, strike=spoilt, first=14, last=14)
    held_out = [{"prompt": "a f j"}, {"prompt": "b e i"}]
    result = train_altered(
        spoil,
        run_file(tmp_path / "out", **changes),
        student=make_model(0),
        teacher=make_model(1, layers=3, hidden=48),
        prompts=PROMPTS,
        eval_prompts=held_out,
    )
    if judged:
        assert result.stopped_by in ("collapse", None)
        return
    assert result.stopped_by in NAMES
    assert 15 < result.steps <= 20
    assert result.events[-1]["text"] == "back to the weights of step 12; the run ends with them"
    assert result.reason.startswith("the rollouts' ")
    assert result.reason.endswith("; back to the weights of step 12; the run ends with them")
    healthy = train(tmp_path / "short", **{**changes, "optimizer": {"lr": 1e-4, "steps": 12}})
    assert same(tmp_path / "out", healthy.out)


@torch.no_grad()
def spoilt(student: Any, rollouts: Any, signal: Any) -> Any:
    for parameter in student.model.parameters():
        parameter.mul_(-3.0)
    return signal


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.slow
def test_a_run_that_its_rollouts_guard_resumes_to_the_same_bits(at: int, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"lr": 1.0, "steps": 30}, "checkpoint": {"every": 4}, "guards": {}}
    whole = train(tmp_path / "whole", **changes)
    assert whole.stopped_by in NAMES
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", callbacks=[Interrupt(min(at, whole.steps - 1))], **changes)
    resumed = train(tmp_path / "cut", resume=True, **changes)
    assert same(tmp_path / "cut", whole.out)
    assert (resumed.events, resumed.steps) == (whole.events, whole.steps)
