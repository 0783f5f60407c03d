"""Whole runs of tiny real models through ``opd.train``: exactness, resume, guards, what is left behind."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import opd
from opd.axes.base import Objects
from opd.config.read import read
from opd.errors import CheckpointError, ConfigError, DataError, EmptyStepError, ModelError
from opd.language.load import load_run
from opd.language.measure import evaluation
from opd.language.run import LanguageRun
from opd.language.terms import loss_terms
from opd.loop import Loop
from opd.models.language import LanguageModel
from opd.output.run_log import RunLog
from opd.rollouts.sampler import Sampler
from opd.types import Sampling
from support.altered import train_altered
from support.families import read_language
from support.interrupt import Interrupt
from support.models import make_model
from support.slow import slow_but
from support.small_runs import PROMPTS, merged, small_run
from support.tokenizers import make_byte_tokenizer


def run_file(out: Path, **changes: Any) -> dict[str, Any]:
    return merged(small_run(out, checkpoint={"every": 2}), changes)


def train(out: Path, *, student: LanguageModel | None = None, **changes: Any) -> opd.Result:
    resume = changes.pop("resume", False)
    callbacks = changes.pop("callbacks", ())
    return opd.train(
        run_file(out, **changes),
        student=student or make_model(0),
        teacher=make_model(1, layers=3, hidden=48),
        prompts=PROMPTS,
        resume=resume,
        callbacks=callbacks,
    )


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["train"]["loss"] for line in lines if "train" in line]


def test_training_lowers_the_divergence_and_leaves_an_ordinary_model_folder(tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"prompt": "q r"}\n{"prompt": "s t"}\n{"prompt": "o p"}\n')
    out = tmp_path / "out"
    result = train(out, optimizer={"steps": 30}, eval={"prompts": {"path": str(held_out)}, "every": 10})
    assert result.after["reverse_kl"] < 0.5 * result.before["reverse_kl"]
    assert result.stopped_by is None
    assert result.steps == 30
    model = AutoModelForCausalLM.from_pretrained(out)
    assert len(AutoTokenizer.from_pretrained(out)) == 31
    assert torch.equal(model.model.embed_tokens.weight, weights(out)["model.embed_tokens.weight"])
    saved = json.loads((out / "result.json").read_text())
    assert saved["before"] == result.before
    assert set(saved) == {"before", "after", "best", "steps", "tokens", "seconds", "stopped_by", "events"}
    assert "reverse_kl" in (out / "README.md").read_text()


def test_the_weights_depend_on_the_run_file_and_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, seed=seed)
    first = weights(tmp_path / "a")
    assert all(torch.equal(t, first[n]) for n, t in weights(tmp_path / "b").items())
    assert not all(torch.equal(t, first[n]) for n, t in weights(tmp_path / "c").items())


def test_micro_batches_add_up_to_one_batch(tmp_path: Path) -> None:
    train(tmp_path / "whole", optimizer={"steps": 1})
    train(tmp_path / "parts", optimizer={"steps": 1, "micro_batch": 3})
    train(tmp_path / "bounded", optimizer={"steps": 1, "micro_tokens": 20})
    for parts in ("parts", "bounded"):
        assert losses(tmp_path / parts) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize("teacher_weights", ["model", "ema"])
@pytest.mark.parametrize("at", slow_but([1, 3, 4, 5], 3))
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, teacher_weights: str, at: int) -> None:
    def go(out: Path, **more: Any) -> opd.Result:
        tree = run_file(out)
        if teacher_weights == "ema":
            tree["teacher"] = {"weights": {"type": "ema", "decay": 0.5}, "view": "privileged"}
        rows = [{**row, "answer": "k l"} for row in PROMPTS]
        teacher = make_model(1) if teacher_weights == "model" else None
        return opd.train(tree, student=make_model(0), teacher=teacher, prompts=rows, **more)

    go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", callbacks=[Interrupt(at)])
    go(tmp_path / "cut", resume=True)
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(t, expected[n]) for n, t in weights(tmp_path / "cut").items())
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_finished_run_resumes_to_its_own_result(tmp_path: Path) -> None:
    first = train(tmp_path / "out")
    again = train(tmp_path / "out", resume=True)
    assert (again.steps, again.tokens, again.seconds) == (first.steps, first.tokens, first.seconds)


def test_an_occupied_folder_is_refused_and_a_changed_run_too(tmp_path: Path) -> None:
    train(tmp_path / "out")
    with pytest.raises(ConfigError, match="already holds a run. Fix: go on with --resume"):
        train(tmp_path / "out")
    with pytest.raises(CheckpointError, match="seed: .* was started with 0, and it is 5 now"):
        train(tmp_path / "out", seed=5, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="is no run of opd"):
        train(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", callbacks=[Interrupt(5)])
    (tmp_path / "out" / "checkpoints" / "000004" / "model.safetensors").write_bytes(b"rubbish")
    result = train(tmp_path / "out", resume=True)
    assert [event["kind"] for event in result.events] == ["damaged"]
    assert "checkpoint '000004' is damaged" in result.events[0]["text"]


def test_a_collapse_stops_the_run_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"prompt": "q r"}\n{"prompt": "s t"}\n{"prompt": "o p"}\n')
    student = make_model(0)
    start = {n: p.detach().clone() for n, p in student.model.named_parameters()}
    result = train(
        tmp_path / "out",
        student=student,
        optimizer={"steps": 40, "lr": 1.0},
        eval={"prompts": {"path": str(held_out)}, "every": 2},
    )
    assert result.stopped_by == "collapse"
    assert result.steps < 40
    assert result.after == result.best
    assert "reverse_kl rose from" in result.events[-1]["text"]
    kept = weights(tmp_path / "out")
    assert result.best == result.before
    assert all(torch.equal(t, start[n]) for n, t in kept.items())


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    def ruin(loop: Loop) -> Loop:
        with torch.no_grad():
            teacher.model.model.norm.weight.fill_(math.nan)
        return loop

    teacher, student = make_model(1), make_model(0)
    start = {n: p.detach().clone() for n, p in student.model.named_parameters()}
    result = train_altered(
        ruin,
        run_file(tmp_path / "out", guards={"max_skipped": 3}),
        student=student,
        teacher=teacher,
        prompts=PROMPTS,
    )
    assert result.stopped_by == "non_finite"
    assert result.steps == 3
    assert [e["kind"] for e in result.events] == [*["non_finite"] * 4, "rollback"]
    assert all(torch.equal(p, start[n]) for n, p in student.model.named_parameters())


def test_supervised_training_on_the_teachers_answers(tmp_path: Path) -> None:
    result = train(
        tmp_path / "out",
        rollout={"source": "teacher", "temperature": 0.0},
        loss={"signal": "sft", "divergence": "forward_kl"},
        optimizer={"steps": 25},
    )
    assert result.steps == 25
    assert losses(tmp_path / "out")[-1] < 0.7 * losses(tmp_path / "out")[0]


def test_supervised_training_on_reference_answers(tmp_path: Path) -> None:
    rows = [{**row, "answer": "k l m"} for row in PROMPTS]
    tree = run_file(
        tmp_path / "out",
        rollout={"source": "references"},
        loss={"signal": "sft", "divergence": "forward_kl"},
        optimizer={"steps": 25},
    )
    opd.train(tree, student=make_model(0), teacher=make_model(1), prompts=rows)
    assert losses(tmp_path / "out")[-1] < 0.3 * losses(tmp_path / "out")[0]


@pytest.mark.slow
def test_anchor_holds_the_student_near_its_start(tmp_path: Path) -> None:
    def distance(anchor: float) -> float:
        student = make_model(0)
        train(tmp_path / f"{anchor}", student=student, loss={"anchor": anchor}, optimizer={"steps": 15})
        return _moved(student)

    assert distance(10.0) < distance(0.0)


def test_only_the_answers_of_avg_at_n_are_drawn_as_eval_sampling_says(tmp_path: Path) -> None:
    settings = {"rollouts_per_prompt": 8, "sampling": {"top_p": 0.9, "min_p": 0.1}, "prompts": {"path": "e.jsonl"}}
    config = read_language(run_file(tmp_path, eval=settings))
    prompts = [{"prompt": "a b", "answer": "c"}]
    given = Objects(student=make_model(0), teacher=make_model(1), prompts=PROMPTS, eval_prompts=prompts)
    run = load_run(config, given)
    measured = evaluation(run, loss_terms(run)[0])
    assert measured
    assert isinstance(measured.drawn, Sampler)
    assert isinstance(measured.sampled, Sampler)
    assert measured.drawn.sampling == Sampling(top_p=0.9, min_p=0.1)
    assert measured.sampled.sampling == Sampling()
    assert "avg@8" in measured()


def _moved(student: LanguageModel) -> float:
    """Mean total variation between the student's next-token distributions and a fresh copy's."""
    fresh = make_model(0)
    ids = torch.arange(3, 31)[None]
    with torch.no_grad():
        now, then = (m.model(ids).logits.softmax(-1) for m in (student, fresh))
    return float((now - then).abs().sum(-1).mean())


def test_bad_input_is_refused_before_any_step(tmp_path: Path) -> None:
    other = make_model(1, tokenizer=make_byte_tokenizer(["a b"], 0), template=False)
    with pytest.raises(ModelError, match="vocabulary is not the student's.*'<pad>' with id 0"):
        opd.train(run_file(tmp_path / "a"), student=make_model(0), teacher=other, prompts=PROMPTS)
    with pytest.raises(DataError, match="fewer than one batch"):
        opd.train(run_file(tmp_path / "b"), student=make_model(0), teacher=make_model(1), prompts=PROMPTS[:3])
    with pytest.raises(ModelError, match="template"):
        opd.train(
            run_file(tmp_path / "c"),
            student=make_model(0, template=False),
            teacher=make_model(1, template=False),
            prompts=[{"messages": [{"role": "user", "content": "a"}]}] * 8,
        )
    with pytest.raises(DataError, match="exceeds the model's 256"):
        train(tmp_path / "d", rollout={"max_new_tokens": 300})
    with pytest.raises(ModelError, match="student: cannot load '/nowhere'"):
        opd.train(run_file(tmp_path / "e", student="/nowhere"))
    tree = run_file(tmp_path / "f") | {"teacher": {"weights": "frozen", "view": "privileged"}}
    with pytest.raises(DataError, match="has no answer, and teacher.view=privileged needs one"):
        opd.train(tree, student=make_model(0), prompts=PROMPTS)
    for name in "abcdef":
        assert not list((tmp_path / name).glob("*.safetensors"))


def test_padded_heads_of_one_family_are_compared_on_what_both_have(tmp_path: Path) -> None:
    student, teacher = make_model(0), make_model(1, vocab=40)
    result = opd.train(run_file(tmp_path / "out"), student=student, teacher=teacher, prompts=PROMPTS)
    assert result.steps == 6


def test_a_run_without_any_hint_is_an_error(tmp_path: Path) -> None:
    tree = run_file(tmp_path / "out") | {"teacher": {"weights": "frozen", "view": "hint"}}
    with pytest.raises(EmptyStepError, match="no hint was written"):
        opd.train(tree, student=make_model(0), prompts=PROMPTS)


def test_the_run_file_is_saved_whole(tmp_path: Path) -> None:
    train(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "run.json").read_text())
    assert read(saved).model_dump(mode="json") == saved


@pytest.mark.slow
def test_reference_answers_are_used_by_the_sft_term_alone(tmp_path: Path) -> None:
    overrides = {
        "loss.sft": 0.5,
        "loss.anchor": 0.1,
        "loss.reward": 0.1,
        "rollout.prompts_per_step": 4,
        "rollout.rollouts_per_prompt": 3,
    }
    small = {"optimizer.steps": 1, "eval.prompts.limit": 8, "log": []}
    config = read_language("opd", {**overrides, **small, "out": str(tmp_path / "run")})
    loop = LanguageRun.load(config, Objects()).assemble(RunLog(tmp_path / "metrics.jsonl", [], []))
    rollouts = loop.sampler.rollout(loop.curriculum.step(0), 0, 0)
    assert [r.source for r in rollouts] == ["student"] * 12 + ["references"] * 4
    about = {said.term.name: set(said.signal.rollout_T.tolist()) for said in loop.score(rollouts)}
    assert about["sft"] == set(range(12, 16))
    assert about["distill"] == about["anchor"] == set(range(12))
    assert about["policy_gradient"] in (set(), set(range(12)))
    loop.run()


@pytest.mark.slow
def test_an_anchor_beside_a_term_without_a_target_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(EmptyStepError, match="without a target for 'distill'"):
        opd.train(
            "hint", {"rollout.source": "references", "eval.prompts.limit": 8, "log": [], "out": str(tmp_path / "run")}
        )


@pytest.mark.slow
def test_rollouts_of_the_teacher_do_not_count_as_the_students(tmp_path: Path) -> None:
    small = {
        "optimizer.steps": 2,
        "rollout.source": {"type": "mixture", "first_steps": 1},
        "eval.prompts.limit": 8,
        "log": [],
    }
    result = opd.train("opd", {**small, "out": str(tmp_path / "run")})
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, second = [row["train"] for row in rows if "train" in row]
    assert "accuracy" not in first
    assert "accuracy" in second
    assert result.tokens == second["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"loss.signal.bridge.rank": 5000}, {"loss.signal.bridge.prompts": 1}])
def test_a_bridge_that_cannot_be_fitted_is_refused(overrides: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loss.signal.bridge: rank="):
        opd.train("oprd", {**overrides, "eval.prompts.limit": 8, "log": [], "out": str(tmp_path / "run")})


@pytest.mark.parametrize(
    ("view", "kind"),
    [({"type": "privileged"}, "privileged"), ({"type": "context", "text": "a b c " * 80}, "context")],
)
def test_a_context_too_long_for_the_teacher_is_refused(view: dict[str, Any], kind: str, tmp_path: Path) -> None:
    student = make_model(0)
    prompts = [{"prompt": "a b", "answer": "c d " * 120, "id": f"p{n}"} for n in range(8)]
    overrides = {
        "teacher": {"weights": "frozen", "view": view},
        "rollout.prompts_per_step": 4,
        "rollout.max_new_tokens": 20,
        "eval.prompts": None,
        "out": str(tmp_path / "run"),
    }
    with pytest.raises(DataError, match=rf"teacher.view={kind}: prompt 'p\d' has \d+ tokens as the teacher reads it"):
        opd.train("opsd", overrides, student=(student.model, student.tokenizer), prompts=prompts)
