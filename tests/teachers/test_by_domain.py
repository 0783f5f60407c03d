"""Several teachers: each reads what is its own, in the memory of one, and what they say is put together rightly."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import opd
import opd.models.language
import opd.types
from opd.axes.views.plain import PlainView
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.errors import ConfigError
from opd.losses.objectives import FullVocabulary, SeveralTeachers
from opd.models.chat import Chat
from opd.models.language import stop_ids
from opd.models.loading import load
from opd.models.pool import ModelPool
from opd.rollouts.sampler import Sampler
from opd.signals import TokenStates
from opd.teachers.by_domain import TeacherRollouts, TeachersByDomain
from opd.teachers.local import LocalTeacher
from opd.teachers.sampled import SampledTeacher
from opd.types import Rollout, Sampling
from support.slow import slow_but

SOURCES = {"math": "nano/math-base", "tools": "nano/tools-base"}
STUDENT = load("nano/math-base", key="student")
BOTH = {"math": {"math": 1.0, "tools": 3.0}, "tools": {"tools": 1.0}}


def pool(**more: str) -> ModelPool:
    return ModelPool({**SOURCES, **more}, key="teacher.models")


def rollouts() -> list[Rollout]:
    engine = HFEngine(STUDENT)
    made = []
    for task in ("math", "tools"):
        sampler = Sampler(
            engine, Chat(STUDENT.tokenizer), get_task(task), stop_ids=stop_ids(STUDENT), max_new_tokens=12, max_turns=2
        )
        made += sampler.rollout(get_task(task).prompts("test")[:4], seed=1)
    return [made[i] for i in (0, 4, 1, 5, 6, 2, 3, 7)]


def test_models_of_one_architecture_share_a_skeleton_and_each_reads_as_if_it_were_alone() -> None:
    models, batch = pool(teacher="nano/math-teacher"), rollouts()
    assert models.in_memory == 2
    segments = PlainView().segments(batch)
    for _ in range(2):
        for name, source in {**SOURCES, "teacher": "nano/math-teacher"}.items():
            alone = load(source, key="x")
            wanted = LocalTeacher(alone).score(batch, segments)
            assert torch.equal(LocalTeacher(models[name]).score(batch, segments).hidden_TD, wanted.hidden_TD)
            assert torch.equal(models.head(name), wanted.head_VD)


def test_a_head_stays_its_own_when_the_next_model_moves_in() -> None:
    models = pool()
    head = models.head("math")
    before = head.clone()
    _ = models["tools"]
    assert torch.equal(head, before)
    assert not torch.equal(models.head("tools"), before)


def test_each_rollout_is_read_by_the_teachers_of_its_domain() -> None:
    batch = rollouts()
    segments = PlainView().segments(batch)
    signal = TeachersByDomain(pool(), {name: {name: 2.0} for name in SOURCES}).score(batch, segments)
    assert len(signal) == sum(r.num_tokens for r in batch)
    order = signal.rollout_T * 2**32 + signal.position_T
    assert torch.equal(order, order.sort().values)
    for k, (name, source) in enumerate(SOURCES.items()):
        rows = (signal.row_TK[:, k] >= 0).nonzero()[:, 0]
        assert {batch[i].prompt.domain for i in signal.rollout_T[rows].tolist()} == {name}
        wanted = LocalTeacher(load(source, key="x")).score(batch, segments)
        chosen = torch.isin(wanted.rollout_T, signal.rollout_T[rows])
        assert torch.equal(signal.part(k, rows).token_T, wanted.token_T[chosen])
        torch.testing.assert_close(signal.part(k, rows).hidden_TD, wanted.hidden_TD[chosen])
        assert bool((signal.share_TK[rows, k] == 1).all())


@pytest.mark.parametrize("combine", ["losses", "arithmetic", "geometric"])
def test_a_mean_of_losses_and_losses_to_means(combine: str) -> None:
    batch = rollouts()
    segments = PlainView().segments(batch)
    signal = TeachersByDomain(pool(), BOTH).score(batch, segments).take(torch.arange(0, 60, 2))
    inner = FullVocabulary(divergence="reverse_kl")
    head = STUDENT.head_VD.detach()
    student = TokenStates(torch.randn(len(signal), 96) * 3, head)
    weight = torch.rand(len(signal))
    loss = SeveralTeachers(inner=inner, combine=combine)(student, signal, weight)  # type: ignore[arg-type]
    log_p = (student.hidden_TD.double() @ head.double().T).log_softmax(-1)
    total = 0.0
    for t in range(len(signal)):
        row = torch.tensor([t])
        said = [(signal.part(k, row), float(signal.share_TK[t, k])) for k in (0, 1) if signal.row_TK[t, k] >= 0]
        log_q = [((s.hidden_TD.double() @ s.head_VD.double().T).log_softmax(-1)[0], share) for s, share in said]
        if combine == "losses":
            value = sum(share * (log_p[t].exp() * (log_p[t] - q)).sum() for q, share in log_q)
        else:
            mean = sum(share * q for q, share in log_q) if combine == "geometric" else None
            mixed = mean.log_softmax(-1) if mean is not None else sum(s * q.exp() for q, s in log_q).log()  # type: ignore[union-attr]
            value = (log_p[t].exp() * (log_p[t] - mixed)).sum()
        total += float(weight[t]) * float(value)
    assert float(loss) == pytest.approx(total, rel=1e-4)
    assert set(signal.share_TK[:, 0].unique().tolist()) == {0.0, 0.25}


def test_log_probabilities_of_the_sampled_token() -> None:
    batch = rollouts()
    segments = PlainView().segments(batch)
    both = TeachersByDomain(pool(), BOTH)
    each = [LocalTeacher(load(s, key="x")).score(batch, segments) for s in SOURCES.values()]
    logs = torch.stack([SampledTeacher(_Fixed(signal)).score(batch, segments).teacher_logprobs_T for signal in each], 1)
    share = both.score(batch, segments).share_TK
    for arithmetic, wanted in ((True, (share * logs.exp()).sum(1).log()), (False, (share * logs).sum(1))):
        found = SampledTeacher(both, arithmetic=arithmetic).score(batch, segments).teacher_logprobs_T
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


class _Fixed(LocalTeacher):
    def __init__(self, signal: opd.signals.FullSignal) -> None:
        self.signal = signal

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[opd.types.Segment]) -> opd.signals.FullSignal:
        return self.signal


def test_alternating_teachers_are_drawn_by_share_and_by_the_rollout_alone() -> None:
    batch = [replace(r, prompt=replace(r.prompt, id=f"{r.prompt.id}-{n}")) for r in rollouts() for n in range(12)]
    one = TeachersByDomain(pool(), BOTH, alternate=True).score(batch, PlainView().segments(batch))
    again = TeachersByDomain(pool(), BOTH, alternate=True).score(batch[::-1], PlainView().segments(batch[::-1]))
    assert bool(((one.row_TK >= 0).sum(1) == 1).all())
    math = torch.tensor([r.prompt.domain == "math" for r in batch])
    first = {i: bool(s) for i, s in zip(one.rollout_T.tolist(), one.share_TK[:, 0] == 1, strict=True)}
    mirrored = {
        len(batch) - 1 - i: bool(s) for i, s in zip(again.rollout_T.tolist(), again.share_TK[:, 0] == 1, strict=True)
    }
    assert first == mirrored
    share = sum(first[i] for i in math.nonzero()[:, 0].tolist()) / int(math.sum())
    assert 0.05 < share < 0.5


def test_teachers_write_the_answers_of_their_own_domains() -> None:
    models, task = pool(), get_task("math")
    prompts = [*task.prompts("test")[:3], *get_task("tools").prompts("test")[:3]]
    prompts = [prompts[i] for i in (0, 3, 1, 4, 2, 5)]

    def sampler(model: opd.models.language.LanguageModel) -> Sampler:
        engine = HFEngine(model)
        return Sampler(
            engine,
            Chat(model.tokenizer),
            None,
            sampling=Sampling(temperature=0),
            stop_ids=stop_ids(model),
            max_new_tokens=8,
            source="teacher",
        )

    written = TeacherRollouts(models, {name: {name: 1.0} for name in SOURCES}, sampler).rollout(prompts, 0)
    for prompt, rollout in zip(prompts, written, strict=True):
        alone = sampler(load(SOURCES[prompt.domain], key="x")).rollout([prompt], 0)[0]
        assert rollout.completion_ids == alone.completion_ids
        assert rollout.source == "teacher"


SHORT = {
    "rollout.prompts_per_step": 8,
    "rollout.max_new_tokens": 12,
    "optimizer.steps": 2,
    "eval.every": 2,
    "eval.diagnostics": 8,
    "prompts": [{"task": "math", "limit": 16}, {"task": "tools", "limit": 16}],
    "eval.prompts": [{"task": "math", "split": "test", "limit": 8}, {"task": "tools", "split": "test", "limit": 8}],
    "teacher": {"models": {"math": "nano/math-base", "tools": {"model": "nano/tools-base"}}},
    "log": [],
}


@pytest.mark.parametrize(
    "more",
    slow_but(
        [
            {},
            {"loss.signal": "sampled"},
            {"loss.signal": "top_k", "loss.signal.k": 4},
            {"rollout.source": "teacher"},
            {"rollout.source": "teacher", "loss.signal": "sft"},
            {"eval.divergence": True},
        ],
        {},
        {"eval.divergence": True},
    ),
)
def test_a_run_with_a_teacher_for_each_domain(more: dict[str, object], tmp_path: Path) -> None:
    result = opd.train("opd", {**SHORT, **more, "out": str(tmp_path / "run"), "student": "nano/tools-base"})
    assert result.steps == 2
    assert {"accuracy/math", "accuracy/tools", "teacher_accuracy/math"} <= result.after.keys()
    if more.get("loss.signal") != "sft":
        assert {"teacher/overlap@16/math", "teacher/overlap@16/tools"} <= result.after.keys()
        assert result.after["teacher/reverse_kl/tools"] < 0.1 < result.after["teacher/reverse_kl/math"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"teacher": {"models": {"math": "nano/math-base"}}}, "domain 'tools'.*they have math"),
        ({"teacher.model": "nano/math-teacher"}, "model and models are given, and each names a teacher"),
        ({"teacher.weights": "ema"}, "weights and models are given, and each names a teacher"),
        (
            {"loss.signal": "hidden"},
            "teacher.models needs a signal that several teachers can give together .loss.signal=hidden",
        ),
        (
            {"loss.signal": "sampled", "loss.signal.teacher_entropy": {}},
            "loss.signal.teacher_entropy needs one teacher .*teacher.models",
        ),
        (
            {"rollout.source": {"type": "prefix", "tokens": 3}},
            "rollout.source=prefix needs one teacher .*teacher.models",
        ),
        ({"teacher.models.math": "nano/math-teacher-bpe"}, r"teacher.models.math: the teacher's vocabulary is not"),
        ({"teacher.models.math": "./nowhere/"}, r"teacher.models.math: cannot load './nowhere/'"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(opd.OpdError, match=words):
        opd.train("opd", {**SHORT, **more, "out": str(tmp_path / "run")})


def test_combine_needs_several(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"experimental.combine=geometric needs several teachers .*Fix: give teacher.models"
    ):
        opd.train("opd", {"experimental.combine": "geometric", "out": str(tmp_path / "run")})
