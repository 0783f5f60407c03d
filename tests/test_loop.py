"""The loop: its loss, batches without a target, and evaluations that miss a metric."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

import opd
from opd.axes.base import Objects
from opd.axes.views.plain import PlainView
from opd.config.read import read
from opd.config.run import RunConfig
from opd.errors import ConfigError, EmptyStepError
from opd.evaluation.metrics import gap_recovery
from opd.language.run import LanguageRun
from opd.loop import Loop
from opd.output.run_log import RunLog
from opd.report.data import run_data
from opd.types import Metrics, Rollout, Scored, Segment, Signal, Span, States
from support.altered import train_altered
from support.interrupt import Interrupt
from support.models import make_model
from support.small_runs import PROMPTS, merged, small_run


def run_file(out: Path, **changes: Any) -> dict[str, Any]:
    return merged(small_run(out, guards={"max_idle": 3}, report=False), changes)


def train(out: Path, alter: Callable[[Loop], Loop] | None = None, **changes: Any) -> opd.Result:
    teacher = make_model(1, layers=3, hidden=48)
    return train_altered(alter, run_file(out, **changes), student=make_model(0), teacher=teacher, prompts=PROMPTS)


class Kept(RunLog):
    """A log that keeps the signals of every step."""

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        self.rollouts, self.kept = rollouts, scored


def language(tree: dict[str, Any]) -> RunConfig:
    config = read(tree)
    assert isinstance(config, RunConfig)
    return config


def a_loop(tmp_path: Path, **changes: Any) -> tuple[Loop, Kept]:
    log = Kept(tmp_path / "metrics.jsonl")
    objects = Objects(student=make_model(0), teacher=make_model(1), prompts=PROMPTS)
    return LanguageRun.load(language(run_file(tmp_path / "out", **changes)), objects).assemble(log), log


def every_third(rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
    return (torch.arange(len(signal)) % 3 == 0).float()


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_loss_is_the_mean_over_the_positions_that_count(tmp_path: Path, micro_batch: int | None) -> None:
    loop, log = a_loop(tmp_path, optimizer={"micro_batch": micro_batch})
    loop.terms = [dataclasses.replace(loop.terms[0], token_weights=every_third)]
    metrics = loop._step(0)
    (said,) = log.kept
    tokens = int(metrics["tokens"])
    assert len(said.signal) == -(-tokens // 3)
    assert metrics["distill"] == pytest.approx(said.loss_T.mean().item(), rel=1e-5)
    assert said.weight_T.sum().item() == pytest.approx(1.0)
    assert metrics["distill_share"] == pytest.approx(len(said.signal) / tokens)


def test_the_weight_of_a_term_scales_its_gradient(tmp_path: Path) -> None:
    norms = []
    for weight in (1.0, 0.25):
        loop, _ = a_loop(tmp_path)
        loop.terms = [dataclasses.replace(loop.terms[0], weight=weight)]
        norms.append(loop._step(0)["grad_norm"])
    assert norms[1] == pytest.approx(0.25 * norms[0], rel=1e-5)


def test_after_a_rollback_the_steps_are_smaller_by_its_factor(tmp_path: Path) -> None:
    moved, lrs = [], []
    for scale in (1.0, 0.25):
        loop, _ = a_loop(tmp_path)
        weights = loop.student.model.lm_head.weight
        before = weights.detach().clone()
        loop.state.targets["distill"], loop.state.lr_scale = 1, scale
        lrs.append(loop._step(0)["lr"])
        moved.append(float((weights.detach() - before).abs().max()))
    assert lrs[1] == pytest.approx(0.25 * lrs[0])
    assert moved[1] == pytest.approx(0.25 * moved[0], rel=1e-3)


@pytest.mark.parametrize("rollbacks", [0, 1])
def test_an_averaged_teacher_follows_the_student_until_a_rollback(tmp_path: Path, rollbacks: int) -> None:
    tree = run_file(tmp_path / "out", teacher={"weights": "ema", "view": "privileged"}) | {"student": "s"}
    del tree["teacher"]["model"]
    objects = Objects(student=make_model(0), prompts=[{**row, "answer": "k l"} for row in PROMPTS])
    loop = LanguageRun.load(language(tree), objects).assemble(Kept(tmp_path / "metrics.jsonl"))
    assert loop.average is not None
    before = {name: tensor.clone() for name, tensor in loop.average.tensors().items()}
    loop.state.rollbacks = rollbacks
    loop._step(0)
    stands = all(torch.equal(tensor, before[name]) for name, tensor in loop.average.tensors().items())
    assert stands == bool(rollbacks)


def test_the_same_prompts_get_other_rollouts_at_other_steps_and_seeds(tmp_path: Path) -> None:
    rollouts: list[list[Rollout]] = []
    same = a_loop(tmp_path)[0].curriculum.step(0)

    class Recorded:
        def __init__(self, source: Any) -> None:
            self.source = source

        def rollout(self, prompts: Any, seed: int, step: int = 0) -> list[Rollout]:
            rollouts.append(self.source.rollout(same, seed, 0))
            return rollouts[-1]

    for seed in (0, 1):
        loop, _ = a_loop(tmp_path, seed=seed, optimizer={"lr": 1e-12})
        loop.sampler = Recorded(loop.sampler)
        for step in (0, 1):
            loop._step(step)
    texts = [tuple(rollout.completion_ids for rollout in batch) for batch in rollouts]
    assert len(set(texts)) == 4


def test_tokens_of_other_sources_are_not_counted_as_the_students(tmp_path: Path) -> None:
    class Mixed:
        def __init__(self, source: Any) -> None:
            self.source = source

        def rollout(self, prompts: Any, seed: int, step: int = 0) -> list[Rollout]:
            first, *others = self.source.rollout(prompts, seed, step)
            return [dataclasses.replace(first, source="teacher"), *others]

    loop, log = a_loop(tmp_path)
    loop.sampler = Mixed(loop.sampler)
    metrics = loop._step(0)
    assert loop.state.tokens == metrics["tokens"] - log.rollouts[0].num_tokens


class FirstHalf:
    """A view that shows the teacher the first half of each rollout."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        whole = PlainView().segments(rollouts)
        return [dataclasses.replace(one, span=Span(0, (one.span.stop + 1) // 2)) for one in whole]


def test_a_term_without_a_view_takes_the_tokens_that_no_other_has(tmp_path: Path) -> None:
    loop, log = a_loop(tmp_path, loss={"anchor": 0.1})
    main, anchor = loop.terms[0], dataclasses.replace(loop.terms[1], view=None)
    loop.terms = [dataclasses.replace(main, view=FirstHalf()), anchor, dataclasses.replace(anchor, name="third")]
    loop._step(0)
    places = [set(zip(s.signal.rollout_T.tolist(), s.signal.position_T.tolist(), strict=True)) for s in log.kept]
    assert not places[0] & places[1]
    assert places[2] == set()
    assert len(places[0] | places[1]) == sum(rollout.num_tokens for rollout in log.rollouts)


def test_weights_that_are_not_finite_are_not_measured(tmp_path: Path) -> None:
    loop, _ = a_loop(tmp_path)
    loop.evaluate = lambda: {"accuracy": 0.9}
    with torch.no_grad():
        loop.student.model.lm_head.weight[0, 0] = math.nan
    loop._evaluate()
    assert (loop.state.before, loop.state.best) == ({}, {})
    assert not (tmp_path / "out" / "checkpoints" / "best").exists()


def test_the_last_step_is_measured_and_saved_whenever_it_comes(tmp_path: Path) -> None:
    kls = [{"reverse_kl": value} for value in (1.0, 0.9, 0.8, 0.7)]
    result = train(tmp_path / "out", evaluations(*kls), optimizer={"steps": 5}, checkpoint={"every": 3})
    lines = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval" in line] == [0, 2, 4, 5]
    assert sorted(path.name for path in (result.out / "checkpoints").glob("[0-9]*")) == ["000003", "000005"]
    assert (result.best, result.after) == (kls[-1], kls[-1])


def test_a_run_goes_on_without_a_second_evaluation_of_its_start(tmp_path: Path) -> None:
    def alter(left: list[Metrics]) -> Callable[[Loop], Loop]:
        return lambda loop: dataclasses.replace(loop, evaluate=lambda: left.pop(0), evaluate_every=2)

    kls: list[Metrics] = [{"reverse_kl": value} for value in (1.0, 0.9, 0.8, 0.7)]
    changes: dict[str, Any] = {"checkpoint": {"every": 1}}
    teacher = make_model(1, layers=3, hidden=48)
    with pytest.raises(KeyboardInterrupt):
        train_altered(
            alter(kls[:2]),
            run_file(tmp_path / "out", **changes),
            student=make_model(0),
            teacher=teacher,
            prompts=PROMPTS,
            callbacks=[Interrupt(3)],
        )
    result = train_altered(
        alter(kls[2:]),
        run_file(tmp_path / "out", **changes),
        student=make_model(0),
        teacher=teacher,
        prompts=PROMPTS,
        resume=True,
    )
    lines = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval" in line] == [0, 2, 4, 6]
    assert (result.before, result.after) == (kls[0], kls[3])


def test_updates_that_are_left_out_count_in_a_row(tmp_path: Path) -> None:
    """Two of them with a good one between do not stop a run that two in a row would."""

    def alter(loop: Loop) -> Loop:
        main, *others = loop.terms

        def bad(student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
            arguments = student, signal, weight_T, per_token_T
            return main.objective(*arguments) * (math.nan if loop.state.step in (1, 3) else 1.0)

        return dataclasses.replace(loop, terms=[dataclasses.replace(main, objective=bad), *others])

    result = train(tmp_path / "out", alter, guards={"max_skipped": 2})
    assert (result.steps, result.stopped_by) == (6, None)
    assert [(event["step"], event["kind"]) for event in result.events] == [(1, "non_finite"), (3, "non_finite")]


class Silent:
    """A view that shows the teacher nothing before a step."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.calls = 0

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        self.calls += 1
        return PlainView().segments(rollouts) if self.calls > self.until else []


class Now(Silent):
    """Shows the teacher nothing at some of its calls."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        self.calls += 1
        return [] if self.calls in (2, 3, 5, 6) else PlainView().segments(rollouts)


def test_idle_steps_count_in_a_row(tmp_path: Path) -> None:
    """Twice two of them with an update between do not stop a run that three in a row would."""

    def alter(loop: Loop) -> Loop:
        return dataclasses.replace(loop, terms=[dataclasses.replace(loop.terms[0], view=Now(0))])

    result = train(tmp_path / "out", alter)
    assert (result.steps, result.stopped_by) == (6, None)
    assert [event["kind"] for event in result.events] == ["idle"] * 4


def silent(until: int) -> Callable[[Loop], Loop]:
    def alter(loop: Loop) -> Loop:
        main, *others = loop.terms
        return dataclasses.replace(loop, terms=[dataclasses.replace(main, view=Silent(until)), *others])

    return alter


@pytest.mark.parametrize("anchor", [0.0, 0.1])
def test_a_first_batch_without_a_target_makes_no_update_and_the_run_goes_on(anchor: float, tmp_path: Path) -> None:
    result = train(tmp_path / "out", silent(2), loss={"anchor": anchor})
    assert (result.steps, result.stopped_by) == (6, None)
    assert [(event["step"], event["kind"]) for event in result.events] == [(0, "idle"), (1, "idle")]
    assert "no update was made ('distill': teacher.view=plain, and no token got a target" in result.events[0]["text"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert ["loss" in row["train"] for row in rows if "train" in row] == [False, False, True, True, True, True]


@pytest.mark.parametrize("anchor", [0.0, 0.1])
def test_a_view_that_is_always_empty_ends_the_run_with_an_error(anchor: float, tmp_path: Path) -> None:
    with pytest.raises(EmptyStepError, match=r"ended at step 3 without a target for 'distill': .*teacher\.view"):
        train(tmp_path / "out", silent(99), loss={"anchor": anchor})
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"]["kind"] for line in lines if "event" in line] == ["idle"] * 4  # the last one ends the run


SOON_IDLE: dict[str, Any] = {
    "rollout.prompts_per_step": 4,
    "guards.max_idle": 2,
    "eval.prompts": None,
    "log": [],
    "report": False,
}


class Mute:
    """A hint author that never writes a hint."""

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Any]]:
        return [[] for _ in rollouts]


def test_a_hint_author_that_never_writes_is_named(tmp_path: Path) -> None:
    def alter(loop: Loop) -> Loop:
        loop.terms[0].view.author = Mute()  # type: ignore[union-attr]
        return loop

    with pytest.raises(EmptyStepError) as error:
        train_altered(alter, "hint", {**SOON_IDLE, "out": str(tmp_path / "out")})
    assert "ended at step 2 without a target for 'distill': teacher.view=hint, and no hint was written" in str(
        error.value
    )


class Wrong:
    """A rollout source whose attempts all fail."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def rollout(self, prompts: Any, seed: int, step: int = 0) -> list[Rollout]:
        return [dataclasses.replace(r, reward=0.0, correct=False) for r in self.source.rollout(prompts, seed, step)]


def test_a_feedback_view_without_a_success_is_not_blamed_on_hints(tmp_path: Path) -> None:
    def alter(loop: Loop) -> Loop:
        return dataclasses.replace(loop, sampler=Wrong(loop.sampler))

    with pytest.raises(EmptyStepError) as error:
        train_altered(alter, "sdpo", {**SOON_IDLE, "out": str(tmp_path / "out")})
    assert "ended at step 2 without a target for 'distill': teacher.view=feedback" in str(error.value)
    assert "hint" not in str(error.value)


def test_a_term_without_a_target_beside_one_that_teaches_is_an_event(tmp_path: Path) -> None:
    def alter(loop: Loop) -> Loop:
        main = loop.terms[0]
        empty = dataclasses.replace(main, name="second", view=Silent(99), if_empty="check the second view")
        return dataclasses.replace(loop, terms=[main, empty])

    result = train(tmp_path / "out", alter)
    text = "no token has had a target for 'second' yet: check the second view"
    assert result.events == [{"step": 2, "kind": "no_target", "text": text}]
    assert result.steps == 6


def evaluations(*all_metrics: Metrics) -> Callable[[Loop], Loop]:
    """Let the run's evaluations return these metrics, one after the other."""
    left = list(all_metrics)

    def alter(loop: Loop) -> Loop:
        return dataclasses.replace(loop, evaluate=lambda: dict(left.pop(0)), evaluate_every=2)

    return alter


def test_an_evaluation_without_the_judged_metric_is_an_event_and_judges_nothing(tmp_path: Path) -> None:
    kl, none = {"reverse_kl": 1.0}, {"length": 3.0}
    result = train(tmp_path / "out", evaluations(kl, none, {"reverse_kl": 0.5}, none))
    assert (result.steps, result.stopped_by) == (6, None)
    text = "validation reverse_kl was not measured, so no guard judged this evaluation"
    assert result.events == [{"step": step, "kind": "unmeasured", "text": text} for step in (2, 6)]
    assert (result.best, result.after) == ({"reverse_kl": 0.5}, none)


def test_a_missing_metric_does_not_end_a_collapse(tmp_path: Path) -> None:
    bad = {"reverse_kl": 9.0}
    alter = evaluations({"reverse_kl": 1.0}, bad, {"length": 3.0}, bad)
    result = train(tmp_path / "out", alter, guards={"patience": 2}, optimizer={"steps": 20})
    assert [(event["step"], event["kind"]) for event in result.events] == [(4, "unmeasured"), (6, "collapse")]
    assert (result.steps, result.stopped_by) == (6, "collapse")


def test_an_accuracy_that_is_missing_recovers_no_gap() -> None:
    assert gap_recovery({"accuracy": 0.5}, {"teacher_accuracy": 0.9}) == {}
    assert gap_recovery({"length": 1.0}, {"accuracy": 0.5, "teacher_accuracy": 0.9}) == {}
    assert gap_recovery({"accuracy": 0.5}, {"accuracy": 0.7, "teacher_accuracy": 0.9}) == {
        "gap_recovery": pytest.approx(0.5)
    }


def test_a_run_without_gain_ends_early_with_the_best_weights(tmp_path: Path) -> None:
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "a b"}\n')
    kls = [{"reverse_kl": value} for value in (1.0, 0.5, 0.7, 0.6, 0.4)]
    changes = {"guards": {"no_gain": 2}, "optimizer": {"steps": 20}, "eval": {"prompts": f"{tmp_path}/held_out.jsonl"}}
    result = train(tmp_path / "out", evaluations(*kls), **changes)
    assert (result.steps, result.stopped_by) == (6, "no_gain")
    assert result.events[-1]["text"] == "no gain in 2 evaluations in a row; the best weights, of step 2, are kept"
    assert result.after == result.best == {"reverse_kl": 0.5}
    best, out = (load_file(f / "model.safetensors") for f in (result.out / "checkpoints" / "best", result.out))
    assert all(torch.equal(tensor, out[name]) for name, tensor in best.items())


def test_a_clock_that_jumps_changes_no_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(time.time(), -1e6)
    monkeypatch.setattr("time.time", lambda: next(clock))
    result = train(tmp_path / "out", optimizer={"steps": 1})
    assert 0 < result.seconds < 1e5
    lines = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= value < 1e5 for line in lines for key, value in line.get("train", {}).items() if key.endswith("_s"))


def test_no_gain_needs_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"guards\.no_gain needs an evaluation \(no eval\.prompts\)\. Fix: give"):
        train(tmp_path / "out", evaluations(), guards={"no_gain": 2})


def test_a_metric_that_is_not_finite_is_null_and_named_once(tmp_path: Path) -> None:
    metrics = {"reverse_kl": 1.0, "odd": math.nan, "far": math.inf}
    result = train(tmp_path / "out", evaluations(metrics, metrics, metrics, metrics), report=True)
    lines = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    evals = [line["eval"] for line in lines if "eval" in line]
    assert evals == [{"reverse_kl": 1.0, "odd": None, "far": None}] * 4
    said = [line["event"]["text"] for line in lines if "event" in line]
    assert said == ["not a finite number, written as null: far, odd"]
    assert json.loads((result.out / "result.json").read_text())["after"] == evals[0]
    assert run_data(result.out)["eval"]["columns"] == {"reverse_kl": [1.0] * 4}
    assert (result.out / "report.html").exists()


class _Waits(TorchFunctionMode):
    """Counts the places of the loop and the forward pass that would wait for a GPU: values of float tensors read by the
    host, or selected by a mask. Positions and tokens are integers and stay on the CPU."""

    READS = ("item", "tolist", "__bool__", "__float__", "nonzero", "cpu", "numpy")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        on_gpu = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point()
        masked = name in ("__getitem__", "__setitem__") and getattr(args[1], "dtype", None) == torch.bool
        frame = sys._getframe(1)
        while frame.f_back and "torch" in frame.f_code.co_filename:
            frame = frame.f_back
        caller = frame.f_code.co_filename
        if on_gpu and (name in self.READS or masked) and caller.endswith(("loop.py", "forward.py", "types.py")):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro_batch", [None, 2, 1])
def test_an_update_waits_for_a_gpu_once_however_many_micro_batches_it_has(
    tmp_path: Path, micro_batch: int | None
) -> None:
    loop, _ = a_loop(tmp_path, optimizer={"micro_batch": micro_batch}, loss={"anchor": 0.5})
    rollouts = loop.sampler.rollout(loop.curriculum.step(0), 0, 0)
    scored = loop.score(rollouts)
    loop.state.targets["distill"] = 1
    passes = len(list(loop.forward(rollouts)))
    assert (passes == 1) == (micro_batch is None)
    with _Waits() as waits:
        loop._update(rollouts, scored)
    assert waits.count == len(scored)  # the sum of each term
