"""A recording: what was rolled out and scored once, played back the same, also from its file."""

import json
import math
from pathlib import Path

import pytest
import torch

import opd
from opd.axes.views.plain import PlainView
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.errors import CheckpointError, ConfigError
from opd.losses import Support
from opd.losses.objectives import FullVocabulary, per_token_losses
from opd.losses.support import Rest
from opd.models.chat import Chat
from opd.models.forward import states_of
from opd.models.language import stop_ids
from opd.models.loading import load
from opd.rollouts.recorded import Recording, record, save, scorer
from opd.rollouts.recorded import load as read_recording
from opd.rollouts.sampler import Sampler
from opd.signals import SampledSignal
from opd.teachers.local import LocalTeacher
from opd.teachers.sampled import SampledTeacher
from opd.types import Term

PROMPTS = get_task("tools").prompts("train")[:6]


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    model = load("nano/tools-base", key="student")
    engine = HFEngine(model)
    return Sampler(
        engine, Chat(model.tokenizer), get_task("tools"), stop_ids=stop_ids(model), max_new_tokens=64, max_turns=5
    )


def test_what_is_played_back_is_what_was_recorded(sampler: Sampler, tmp_path: Path) -> None:
    teacher = SampledTeacher(LocalTeacher(load("nano/critic", key="teacher.model")))
    takes = record(sampler, teacher, PlainView(), PROMPTS, samples=2, batch=4, seed=0)
    save(takes, tmp_path / "recorded.jsonl")
    recording = Recording(read_recording(tmp_path / "recorded.jsonl", PROMPTS))
    asked = [PROMPTS[5], PROMPTS[0], PROMPTS[0]]
    played = recording.rollout(asked, seed=7)
    wanted = [takes[10].rollout, takes[0].rollout, takes[1].rollout]
    assert [(r.completion_ids, r.completion_mask, r.turns, r.reward) for r in played] == [
        (r.completion_ids, r.completion_mask, r.turns, r.reward) for r in wanted
    ]
    signal = recording.score(played, PlainView().segments(played))
    assert isinstance(signal, SampledSignal)
    now = teacher.score(wanted, PlainView().segments(wanted))
    assert torch.equal(signal.token_T, now.token_T)
    assert torch.equal(signal.position_T, now.position_T)
    torch.testing.assert_close(signal.teacher_logprobs_T, now.teacher_logprobs_T, rtol=1e-4, atol=1e-4)
    assert torch.equal(signal.rollout_logprobs_T, now.rollout_logprobs_T)


def test_a_broken_recording_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"prompt": "nobody"}\n')
    with pytest.raises(CheckpointError, match=r"line 1 of .*r.jsonl.* another run's prompt"):
        read_recording(tmp_path / "r.jsonl", PROMPTS)


@pytest.mark.slow
def test_a_run_asks_its_teacher_once_and_goes_on_from_its_file(tmp_path: Path) -> None:
    small = {
        "rollout.source": {"type": "recorded", "prompts": 20},
        "optimizer.warmup": 1,
        "eval.prompts.limit": 8,
        "checkpoint.every": 1,
        "log": [],
    }
    small["rollout.prompts_per_step"] = 4
    whole = opd.train("lightning", {**small, "optimizer.steps": 4, "out": str(tmp_path / "whole")})
    rows = [json.loads(line) for line in (tmp_path / "whole" / "recorded.jsonl").read_text().splitlines()]
    assert len(rows) == 20 * 4
    assert whole.steps == 4
    assert all(math.isfinite(x) for row in rows for x in row["teacher_logprobs"])
    (tmp_path / "whole" / "checkpoints" / "000004").rename(tmp_path / "gone")
    again = opd.train("lightning", {**small, "optimizer.steps": 4, "out": str(tmp_path / "whole")}, resume=True)
    assert again.after == whole.after


def test_hints_are_recorded_with_the_rollouts_and_not_asked_for_again(tmp_path: Path) -> None:
    recipe = {
        "loss.signal": "sampled",
        "loss.divergence": "reverse_kl",
        "rollout.source": {"type": "recorded", "prompts": 16},
        "rollout.prompts_per_step": 16,
    }
    small = {"optimizer.steps": 2, "eval.prompts.limit": 8, "log": [], "out": str(tmp_path / "run")}
    opd.train("hint", {**recipe, **small})
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [row["train"] for row in rows if "train" in row]
    assert all(0 < row["distill_share"] < 1 for row in trained)
    assert all(row["distill_share"] + row["anchor_share"] == pytest.approx(1) for row in trained)


@pytest.mark.parametrize("rest", ["tail", "renormalise"])
def test_recorded_likeliest_tokens_give_the_loss_of_the_teacher_itself(
    sampler: Sampler, tmp_path: Path, rest: Rest
) -> None:
    teacher, student = LocalTeacher(load("nano/critic", key="t")), load("nano/tools-base", key="s")
    objective = FullVocabulary(divergence="reverse_kl", support=Support(4, "teacher", rest), temperature=1.5)
    term = Term("distill", "distill", teacher, PlainView(), objective)
    save(record(sampler, scorer(term), PlainView(), PROMPTS, samples=1, batch=4, seed=0), tmp_path / "r.jsonl")
    recording = Recording(read_recording(tmp_path / "r.jsonl", PROMPTS))
    rollouts = recording.rollout(PROMPTS, seed=7)
    segments = recording.segments(rollouts)
    signals = recording.score(rollouts, segments), teacher.score(rollouts, segments)
    _, states = states_of(student, rollouts, segments, max_tokens=10_000)
    mine, whole = (per_token_losses(objective, states, signal) for signal in signals)
    torch.testing.assert_close(mine, whole, rtol=1e-3, atol=1e-4)
    assert mine.mean() > 0.01


def test_a_run_trains_on_recorded_likeliest_tokens(tmp_path: Path) -> None:
    settings = {
        "loss.signal": {"type": "top_k", "k": 4},
        "rollout.source": {"type": "recorded", "prompts": 4},
        "rollout.prompts_per_step": 4,
        "optimizer.steps": 2,
        "eval.prompts.limit": 4,
        "log": [],
        "out": str(tmp_path / "run"),
    }
    assert opd.train("opd", settings).steps == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "recorded.jsonl").read_text().splitlines()]
    ids, logprobs, rest = rows[0]["likeliest"]["0"]
    assert len(ids) == len(logprobs) == 4
    assert sum(map(math.exp, [*logprobs, rest])) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match=r"rollout.source=recorded needs a signal made of .* likeliest ones"):
        opd.train("opd", {**settings, "loss.signal.support": "student", "out": str(tmp_path / "refused")})
