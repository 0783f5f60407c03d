"""Alignment: hidden states belong to the tokens they are said to belong to, and a shifted teacher is caught."""

import math
from typing import Any

import pytest
import torch

from opd.errors import AlignmentError
from opd.models import forward
from opd.models.forward import align, read, read_own, readings_of, sort_key, student_readings
from opd.models.language import LanguageModel
from opd.teachers.local import LocalTeacher
from opd.types import Prompt, Rollout, Segment, Signal, Span
from support.models import make_model


def rollout(ids: list[int], mask: list[bool] | None = None, prompt: tuple[int, ...] = (5, 6, 7)) -> Rollout:
    mask = mask or [True] * len(ids)
    return Rollout(
        prompt=Prompt(id=f"p{ids[0]}", text="x"),
        prompt_ids=prompt,
        completion_ids=tuple(ids),
        completion_mask=tuple(mask),
        logprobs=(math.nan,) * len(ids),
        turns=(Span(0, len(ids)),),
        finish="stop",
    )


ROLLOUTS = [
    rollout([8, 9, 10, 11], [True, True, False, True]),
    rollout([12, 13], prompt=(4, 5, 6, 7, 8)),
    rollout([14, 15, 16, 17, 18, 19]),
]


def whole(rollouts: list[Rollout]) -> list[Segment]:
    return [Segment(i, r.prompt_ids, Span(0, len(r.completion_ids))) for i, r in enumerate(rollouts)]


def test_states_predict_their_tokens(student: LanguageModel) -> None:
    where, states = read(student, student_readings(ROLLOUTS))
    assert where.token_T.tolist() == [8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    assert where.position_T.tolist() == [0, 1, 3, 0, 1, 0, 1, 2, 3, 4, 5]
    logits = states.hidden_TD @ student.head_VD.T
    for row, (index, position) in enumerate(zip(where.rollout_T.tolist(), where.position_T.tolist(), strict=True)):
        r = ROLLOUTS[index]
        context = torch.tensor([[*r.prompt_ids, *r.completion_ids[:position]]])
        assert torch.allclose(logits[row], student.model(context).logits[0, -1], atol=1e-4)


def test_states_after_chosen_blocks_are_those_of_each_rollout_read_alone(student: LanguageModel) -> None:
    where, states = read(student, student_readings(ROLLOUTS), layers=[1, 2])
    assert states.layers_TKD is not None
    assert torch.equal(states.layers_TKD[:, 1], states.hidden_TD)
    for row, (index, position) in enumerate(zip(where.rollout_T.tolist(), where.position_T.tolist(), strict=True)):
        r = ROLLOUTS[index]
        context = torch.tensor([[*r.prompt_ids, *r.completion_ids[:position]]])
        alone = student.model(context, output_hidden_states=True).hidden_states
        assert torch.allclose(states.layers_TKD[row, 0], alone[1][0, -1], atol=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
def test_a_teacher_sees_its_context_and_scores_the_stored_tokens(teacher: LanguageModel, max_tokens: int) -> None:
    segments = [
        Segment(2, (20, 21, 22, *ROLLOUTS[2].completion_ids[:2]), Span(2, 4)),
        Segment(0, (23,), Span(0, 4)),
        Segment(2, ROLLOUTS[2].prompt_ids, Span(0, 2)),
    ]
    signal = LocalTeacher(teacher, max_tokens=max_tokens).score(ROLLOUTS, segments)
    assert signal.rollout_T.tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert signal.position_T.tolist() == [0, 1, 3, 0, 1, 2, 3]
    assert signal.token_T.tolist() == [8, 9, 11, 14, 15, 16, 17]
    context = torch.tensor([[20, 21, 22, 14, 15, 16]])
    expected = teacher.model(context).logits[0, -1]
    assert torch.allclose(signal.hidden_TD[6] @ signal.head_VD.T, expected, atol=1e-4)
    assert not signal.hidden_TD.requires_grad


def test_segments_in_their_own_history_share_one_reading() -> None:
    r = ROLLOUTS[2]
    segments = [
        Segment(2, r.prompt_ids, Span(0, 2)),
        Segment(2, r.prompt_ids + r.completion_ids[:4], Span(4, 5)),
        Segment(2, (20, *r.completion_ids[:2]), Span(2, 4)),
    ]
    assert sorted(r.wanted for r in readings_of(ROLLOUTS, segments)) == [[0, 1, 4], [2, 3]]


def test_rows_are_found(student: LanguageModel, teacher: LanguageModel) -> None:
    where, _ = read(student, student_readings(ROLLOUTS))
    signal = LocalTeacher(teacher).score(ROLLOUTS, [Segment(2, (20,), Span(0, 2)), Segment(0, (20,), Span(3, 4))])
    assert align(ROLLOUTS, where, signal).tolist() == [2, 5, 6]


def test_alignment_fires_on_a_batch_shifted_by_one(student: LanguageModel, teacher: LanguageModel) -> None:
    """What a hint does to a naive implementation: shapes agree, every token is the neighbour's."""
    where, _ = read(student, student_readings(ROLLOUTS))
    signal = LocalTeacher(teacher).score(ROLLOUTS, whole(ROLLOUTS))
    assert align(ROLLOUTS, where, signal).tolist() == list(range(len(signal)))
    shifted = Signal(signal.rollout_T, signal.position_T, signal.token_T.roll(1))
    assert shifted.token_T.shape == signal.token_T.shape
    with pytest.raises(AlignmentError, match="prompt 'p8'.*Fix: correct the context or span"):
        align(ROLLOUTS, where, shifted)


def test_alignment_fires_when_the_teacher_reads_other_tokens(student: LanguageModel, teacher: LanguageModel) -> None:
    """A view that re-tokenised the completion: same length, other ids."""
    retokenised = [rollout([8, 9, 10, 12], [True, True, False, True]), *ROLLOUTS[1:]]
    where, _ = read(student, student_readings(ROLLOUTS))
    signal = LocalTeacher(teacher).score(retokenised, whole(retokenised))
    with pytest.raises(AlignmentError, match="scored token 12 at position 3.*produced 11"):
        align(ROLLOUTS, where, signal)


def test_alignment_fires_on_a_token_the_student_did_not_choose(student: LanguageModel, teacher: LanguageModel) -> None:
    careless = [rollout([8, 9, 10, 11]), *ROLLOUTS[1:]]
    where, _ = read(student, student_readings(ROLLOUTS))
    signal = LocalTeacher(teacher).score(careless, whole(careless))
    with pytest.raises(AlignmentError):
        align(ROLLOUTS, where, signal)


def test_alignment_compares_places_also_where_the_tokens_are_equal(student: LanguageModel) -> None:
    """A teacher that scored the right tokens one place off, in a rollout that says the same token again and again."""
    same = [rollout([8, 8, 8, 8], [True, True, False, True]), rollout([9, 9])]
    where, _ = read(student, student_readings(same))
    assert align(same, where, where).tolist() == list(range(5))
    for row, place in ((2, 2), (4, 2)):  # not the student's, and behind the end
        moved = where.position_T.clone()
        moved[row] = place
        with pytest.raises(AlignmentError):
            align(same, where, Signal(where.rollout_T, moved, where.token_T))
    elsewhere = where.rollout_T.clone()
    elsewhere[4] = 2
    with pytest.raises((AlignmentError, IndexError)):
        align(same, where, Signal(elsewhere, where.position_T, where.token_T))


def test_places_of_long_rollouts_stay_apart(student: LanguageModel, teacher: LanguageModel) -> None:
    """Positions beyond those of every other test here, in more rollouts than one."""
    long = [rollout([4 + (i * k) % 27 for i in range(200)]) for k in (1, 5, 7)]
    where, _ = read(student, student_readings(long))
    assert where.rollout_T.tolist() == [i for i in range(3) for _ in range(200)]
    assert sort_key(where).tolist() == sorted(set(sort_key(where).tolist()))
    signal = LocalTeacher(teacher, max_tokens=300).score(long, whole(long))
    assert signal.position_T.tolist() == [*range(200)] * 3
    assert align(long, where, signal).tolist() == list(range(600))
    assert align(long, where, signal.take(torch.tensor([7, 250, 599]))).tolist() == [7, 250, 599]


def test_segments_beyond_a_models_positions_are_left_out_with_a_warning(teacher: LanguageModel) -> None:
    """What a long attempt or many hints make of a context; learned positions would raise an IndexError."""
    long, short = Segment(0, (20,) * 253, Span(0, 4)), Segment(2, (20,) * 252, Span(0, 4))
    with pytest.warns(UserWarning, match="longer than the 256 positions of 'tiny-1' and are left out. Fix: lower"):
        signal = LocalTeacher(teacher).score(ROLLOUTS, [long, short])
    assert signal.rollout_T.tolist() == [2] * 4
    with pytest.warns(UserWarning, match="left out"):
        assert len(LocalTeacher(teacher).score(ROLLOUTS, [long])) == 0


def test_what_ended_first_is_read_first_and_passes_are_ahead(
    student: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = [rollout([8 + i] * length) for i, length in enumerate((5, 2, 4, 3))]
    made: list[list[int]] = []

    def read_rows(*given: Any) -> Any:
        where, states = one_pass(*given)
        made.append(where.rollout_T.unique().tolist())
        return where, states

    one_pass = forward._read_rows
    monkeypatch.setattr(forward, "_read_rows", read_rows)
    used = []
    for where, _ in forward.read_own(student, rollouts, size=1, ahead=2):
        used.append(where.rollout_T.unique().tolist())
        assert len(made) == min(len(used) + 2, 4)
    assert used == made == [[1], [3], [2], [0]]
    assert [w.rollout_T[0] for w, _ in forward.read_own(student, rollouts, size=1)] == [0, 1, 2, 3]


def test_a_teacher_reads_without_dropout_and_is_left_as_it_was() -> None:
    model = make_model(1)
    model.model.config.attention_dropout = 0.9
    for layer in model.model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    for training in (True, False):
        model.model.train(training)
        once, again = (LocalTeacher(model).score(ROLLOUTS, whole(ROLLOUTS)) for _ in range(2))
        assert torch.equal(once.hidden_TD, again.hidden_TD)
        assert model.model.training == training


def test_a_process_reads_its_own_rollouts_alone(student: LanguageModel) -> None:
    parts = list(read_own(student, ROLLOUTS, size=1, own=lambda rollouts: {0, 2}))
    assert [sorted(set(where.rollout_T.tolist())) for where, _ in parts] == [[0], [2]]
