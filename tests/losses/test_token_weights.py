"""Weights of positions: worked out by hand on rollouts with tool results in between."""

import math

import pytest
import torch

from opd.axes.views.plain import PlainView
from opd.experimental.hardest_tokens import Difficulty
from opd.losses.objectives import FullVocabulary
from opd.losses.token_weights import EntropyThreshold, Positions
from opd.signals import FullSignal, SampledSignal
from opd.teachers.local import LocalTeacher
from opd.types import Event, Prompt, Rollout, Signal, Span
from support.models import make_model


def rollout(ids: list[int], mask: str, turns: list[tuple[int, int]], events: tuple[Event, ...] = ()) -> Rollout:
    return Rollout(
        prompt=Prompt(id="p", text="x"),
        prompt_ids=(1,),
        completion_ids=tuple(ids),
        completion_mask=tuple(c == "1" for c in mask),
        logprobs=(-1.0,) * len(ids),
        turns=tuple(Span(*t) for t in turns),
        finish="stop",
        events=events,
    )


NOTICED = (Event("unknown_tool", 1, Span(3, 5)),)
ROLLOUTS = [rollout([5, 6, 9, 7, 9], "11011", [(0, 2), (3, 5)], NOTICED), rollout([8], "1", [(0, 1)])]


def signal() -> Signal:
    where = [(i, p) for i, r in enumerate(ROLLOUTS) for p, mine in enumerate(r.completion_mask) if mine]
    rollout_T, position_T = torch.tensor(where).unbind(1)
    return Signal(rollout_T, position_T, torch.tensor([ROLLOUTS[i].completion_ids[p] for i, p in where]))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"first": 3}, [1, 1, 1, 0, 1]),  # the tool's token between is not one of the student's
        ({"after": 1}, [0, 1, 1, 1, 0]),
        ({"after": 1, "first": 3}, [0, 1, 1, 0, 0]),
        ({"last": 2}, [0, 0, 1, 1, 1]),
        ({"outside_events": 0.0}, [0, 0, 1, 1, 0]),
        ({"outside_events": 0.5, "ramp": 0.6}, [0.5, 0.6, 1.4, 1.6, 0.5]),
        ({"ramp": 0.6}, [1, 1.2, 1.4, 1.6, 1]),
        ({"skip_ids": frozenset({9, 6})}, [1, 0, 1, 0, 1]),
        ({"mean": "sequence"}, [5 / 8] * 4 + [5 / 2]),
        ({"mean": "turn"}, [5 / 6] * 4 + [5 / 3]),
        ({"mean": "sequence", "first": 1}, [1, 0, 0, 0, 1]),
        ({"mean": "turn", "skip_ids": frozenset({5, 6})}, [0, 0, 3 / 4, 3 / 4, 3 / 2]),
    ],
)
def test_weights(settings: dict[str, object], wanted: list[float]) -> None:
    weights = Positions(**settings)(ROLLOUTS, signal())  # type: ignore[arg-type]
    assert weights.tolist() == pytest.approx(wanted)
    counted = (weights > 0).sum()
    if settings.get("mean", "token") != "token":
        assert float(weights.sum()) == pytest.approx(float(counted))


def test_importance_equals_the_formula() -> None:
    advantage = torch.tensor([0.5, -1.5, 2.0, 0.0, -0.25])
    weights = Positions(importance=0.5)(ROLLOUTS, sampled(advantage))
    sizes = [0.5, 1.5, 2.0, 0.0]
    wanted = [1 + 0.5 * (1 - math.fsum(sizes[:t]) / 4.0) for t in range(4)] + [1.5]
    assert weights.tolist() == pytest.approx(wanted)


def sampled(log_ratio_T: torch.Tensor) -> SampledSignal:
    plain, own_T = signal(), torch.full((5,), -1.0)
    where = plain.rollout_T, plain.position_T, plain.token_T
    return SampledSignal(*where, log_ratio_T + own_T, own_T, torch.zeros(5))


@pytest.mark.parametrize(
    ("second", "wanted"),
    [([2.0, 4.0], 1 / 3), ([0.5, 0.5], 1.2)],  # further away than the first turn; nearer, and cut at 1 + δ
)
def test_a_turn_fades_with_its_distance(second: list[float], wanted: float) -> None:
    """The first turn's mean |log-ratio| is 1; SOD's product over neighbouring turns worked out by hand."""
    weights = Positions(fade=0.2)(ROLLOUTS, sampled(torch.tensor([0.5, -1.5, *second, 9.0])))
    assert weights.tolist() == pytest.approx([1, 1, wanted, wanted, 1], rel=1e-5)


def test_only_where_the_teacher_is_unsure_and_still_a_mean_over_all() -> None:
    plain = signal()
    logits = torch.tensor([[9.0, 0, 0], [0, 0, 0], [0, 9, 0], [1, 1, 0], [0, 0, 9]])
    full = FullSignal(plain.rollout_T, plain.position_T, plain.token_T, logits, torch.eye(3))
    weights = EntropyThreshold(entropy=0.8)(ROLLOUTS, full)
    assert weights.tolist() == pytest.approx([0, 2 / 5, 0, 2 / 5, 0])
    assert float(weights.sum() / (weights > 0).sum()) == pytest.approx(2 / 5)  # as the loop divides
    skipping = EntropyThreshold(entropy=0.8, among=Positions(after=1))(ROLLOUTS, full)
    assert skipping.tolist() == pytest.approx([0, 2 / 3, 0, 2 / 3, 0])


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"hardest": 0.4}, [0, 1, 0, 1, 0]),
        ({"hardest": 0.41}, [0, 1, 1, 1, 0]),  # rounded up; of two alike the earlier one
        ({"hardest": 0.01}, [0, 1, 0, 0, 0]),
        ({"hardest": 0.5, "skip_ids": frozenset({6, 7})}, [0, 0, 0, 1, 1]),  # half of what counts otherwise
        ({"hardest": 0.6, "mean": "sequence", "after": 1}, [0, 1, 0, 1, 0]),
        ({"hardest": 0.8, "ramp": 0.6}, [1.0, 1.2, 1.4, 1.6, 0]),
    ],
)
def test_the_hardest_of_what_counts(settings: dict[str, object], wanted: list[float]) -> None:
    difficulty = torch.tensor([0.5, 3.0, 1.0, 2.0, 1.0])
    if "ramp" in settings:
        difficulty[4] = 0.0
    weights = Positions(difficulty=lambda rollouts, signal: difficulty, **settings)(ROLLOUTS, signal())  # type: ignore[arg-type]
    assert weights.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("by", ["reverse_kl", "entropy"])
def test_difficulty_is_the_loss_of_a_token_or_the_students_entropy(by: str) -> None:
    """Against a plain forward pass over each rollout in float64, as the student is: dropout off, no gradient left."""
    student, teacher = make_model(0), make_model(1, layers=3, hidden=48)
    student.model.train()
    said = LocalTeacher(teacher).score(ROLLOUTS, PlainView().segments(ROLLOUTS))
    objective = FullVocabulary(divergence=by) if by != "entropy" else None
    found = Difficulty(student=student, max_tokens=64, objective=objective, temperature=2.0)(ROLLOUTS, said)
    temperature, wanted = 2.0 if by == "entropy" else 1.0, []
    for r in ROLLOUTS:
        ids = torch.tensor([r.prompt_ids + r.completion_ids])
        with torch.no_grad():
            p, q = ((m.model(ids).logits[0].double() / temperature).log_softmax(-1) for m in (student, teacher))
        score = p.exp() * (p - q) if objective else -p.exp() * p
        wanted += [float(score[i].sum()) for i, own in enumerate(r.completion_mask) if own]
    assert found.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert student.model.training
    assert all(parameter.grad is None for parameter in student.model.parameters())
