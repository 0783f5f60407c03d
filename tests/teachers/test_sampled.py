"""Teachers of one number a token, on real nano models."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from opd.axes.views.plain import PlainView
from opd.axes.views.privileged import PrivilegedView
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.models.chat import Chat
from opd.models.language import LanguageModel, stop_ids
from opd.models.loading import load
from opd.rollouts.sampler import Sampler
from opd.teachers.local import LocalTeacher
from opd.teachers.sampled import GroupAdvantages, SampledTeacher
from opd.types import Rollout


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    return load("nano/math-base", key="student")


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return load("nano/math-teacher", key="teacher.model")


@pytest.fixture(scope="module")
def rollouts(student: LanguageModel) -> list[Rollout]:
    task = get_task("math")
    engine = HFEngine(student)
    prompts = [p for p in task.prompts("test")[:4] for _ in range(4)]
    return Sampler(
        engine, Chat(student.tokenizer), task, stop_ids=stop_ids(student), max_new_tokens=64, max_turns=1
    ).rollout(prompts, 0)


def read_alone(model: LanguageModel, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """log p of each completion token, from whole logits of one sequence."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0].double() / temperature
    before = len(rollout.prompt_ids) - 1
    return logits.log_softmax(-1)[before:-1].gather(1, ids[0, before + 1 :, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_teachers_logprobs_are_those_of_each_rollout_read_alone(
    teacher: LanguageModel, rollouts: list[Rollout], temperature: float
) -> None:
    sampled = SampledTeacher(LocalTeacher(teacher), temperature=temperature)
    signal = sampled.score(rollouts, PlainView().segments(rollouts))
    wanted = torch.cat([read_alone(teacher, r, temperature) for r in rollouts])
    torch.testing.assert_close(signal.teacher_logprobs_T.double(), wanted, rtol=1e-4, atol=1e-4)
    assert signal.token_T.tolist() == [token for r in rollouts for token in r.completion_ids]
    assert signal.rollout_logprobs_T.tolist() == pytest.approx([x for r in rollouts for x in r.logprobs])


def test_a_scale_above_one_goes_beyond_the_teacher(
    student: LanguageModel, teacher: LanguageModel, rollouts: list[Rollout]
) -> None:
    segments = PlainView().segments(rollouts)
    beyond = SampledTeacher(LocalTeacher(teacher), reference=LocalTeacher(student), scale=1.25)
    plain = SampledTeacher(LocalTeacher(teacher)).score(rollouts, segments).teacher_logprobs_T
    base = SampledTeacher(LocalTeacher(student)).score(rollouts, segments).teacher_logprobs_T
    got = beyond.score(rollouts, segments).teacher_logprobs_T
    torch.testing.assert_close(got, 1.25 * plain - 0.25 * base, rtol=1e-5, atol=1e-5)


def test_the_reference_reads_what_the_student_read(student: LanguageModel, rollouts: list[Rollout]) -> None:
    """A self-teacher that sees the answer has a reference that does not: else teacher and reference were one."""
    template = "{prompt} Reference solution: {answer}."
    segments = PrivilegedView(Chat(student.tokenizer), template=template).segments(rollouts)
    reader = LocalTeacher(student)
    sees = SampledTeacher(reader).score(rollouts, segments).teacher_logprobs_T
    plain = SampledTeacher(reader).score(rollouts, PlainView().segments(rollouts)).teacher_logprobs_T
    got = SampledTeacher(reader, reference=reader, scale=1.5).score(rollouts, segments).teacher_logprobs_T
    torch.testing.assert_close(got, 1.5 * sees - 0.5 * plain, rtol=1e-4, atol=1e-4)


def test_the_outcome_is_a_mean_over_all_tokens(rollouts: list[Rollout]) -> None:
    """Groups that all did equally well count with an advantage of 0; only a batch of nothing else has no signal."""
    rewards = [1.0, 0.0, 1.0, 1.0, *[0.7] * 12]
    given = [dataclasses.replace(r, reward=x) for r, x in zip(rollouts, rewards, strict=True)]
    for normalize_std in (True, False):
        signal = GroupAdvantages(normalize_std=normalize_std).score(given, PlainView().segments(given))
        assert len(signal) == sum(r.num_tokens for r in given)
        assert bool((signal.advantage_T[signal.rollout_T >= 4] == 0).all())
        equal = given[4:]
        assert not len(GroupAdvantages(normalize_std=normalize_std).score(equal, PlainView().segments(equal)))


def test_the_baseline_is_the_mean_log_ratio_of_each_position(
    student: LanguageModel, teacher: LanguageModel, rollouts: list[Rollout]
) -> None:
    segments = PlainView().segments(rollouts)
    signal = SampledTeacher(LocalTeacher(teacher), student=LocalTeacher(student)).score(rollouts, segments)
    ids = torch.tensor([rollouts[1].prompt_ids + rollouts[1].completion_ids])
    start = len(rollouts[1].prompt_ids) - 1
    with torch.no_grad():
        log_p, log_q = (m.model(input_ids=ids).logits[0, start:-1].log_softmax(-1) for m in (student, teacher))
    wanted = (log_p.exp() * (log_q - log_p)).sum(-1)
    torch.testing.assert_close(signal.baseline_T[signal.rollout_T == 1], wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(signal.advantage_T, signal.log_ratio_T - signal.baseline_T)


def test_the_rollouts_own_logprobs_are_the_students(student: LanguageModel, rollouts: list[Rollout]) -> None:
    """At temperature 1 a student that teaches itself has no advantage anywhere."""
    signal = SampledTeacher(LocalTeacher(student)).score(rollouts, PlainView().segments(rollouts))
    assert float(signal.advantage_T.abs().max()) < 1e-3


def test_an_outcome_compares_the_rollouts_of_a_prompt(rollouts: list[Rollout]) -> None:
    rewards = [1, 0, 0, 0] + [1] * 4 + [0] * 4 + [1, 1, 0, 0]
    given = [dataclasses.replace(r, reward=float(x)) for r, x in zip(rollouts, rewards, strict=True)]
    signal = GroupAdvantages().score(given, PlainView().segments(given))
    differing = signal.rollout_T[signal.advantage_T != 0]
    assert set(differing.tolist()) == {0, 1, 2, 3, 12, 13, 14, 15}
    first = signal.advantage_T[signal.rollout_T == 0]
    assert first.tolist() == pytest.approx([3**0.5] * len(given[0].completion_ids))
    assert signal.advantage_T[signal.rollout_T == 14].tolist() == pytest.approx([-1.0] * len(given[14].completion_ids))
