"""Objects on every axis, given from Python, and a run file that cannot hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.axes.views.hint import HintView
from opd.axes.views.plain import PlainView
from opd.engines.hf import HFEngine
from opd.errors import ConfigError, OpdError
from opd.losses import Divergence
from opd.losses.objectives import FullVocabulary
from opd.teachers.local import LocalTeacher
from opd.types import Generation, Hint, Prompt, Rollout, Sampling, Segment
from support.models import make_model

PROMPTS = [{"prompt": f"{a} {b}"} for a in "abcd" for b in "efgh"]


def train(out: Path, changes: dict[str, Any] | None = None, **objects: Any) -> opd.Result:
    tree = {
        "student": "s",
        "prompts": {"path": "p.jsonl"},
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 5},
        "optimizer": {"lr": 1e-3, "steps": 2},
        "log": [],
        "report": False,
        "out": str(out),
    }
    return opd.train(tree | (changes or {}), student=make_model(0), prompts=PROMPTS, **objects)


class Counted:
    """Another engine, source or view that counts its calls."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls = 0


class CountedEngine(Counted):
    synced = 0

    def generate(
        self,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        sampling: Sampling,
        stop_ids: frozenset[int],
        seed: int,
    ) -> list[Generation]:
        self.calls += 1
        found: list[Generation] = self.inner.generate(
            contexts, max_new_tokens, sampling=sampling, stop_ids=stop_ids, seed=seed
        )
        return found

    def sync(self) -> None:
        self.synced += 1
        self.inner.sync()


class CountedView(Counted):
    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        self.calls += 1
        segments: list[Segment] = self.inner.segments(rollouts)
        return segments


class OneRollout:
    """The same rollout for every prompt."""

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        ids = (5, 6, 2)
        return [
            Rollout(
                prompt=prompt,
                prompt_ids=(4, 5),
                completion_ids=ids,
                completion_mask=(True,) * 3,
                logprobs=(-1.0,) * 3,
                turns=(opd.Span(0, 3),),
                finish="stop",
            )
            for prompt in prompts
        ]


class FirstToken:
    """A hint above every rollout."""

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Hint]]:
        return [[Hint(rollout.turns[0], "a b")] for rollout in rollouts]


def test_an_engine_generates_every_rollout_of_the_student(tmp_path: Path) -> None:
    student, teacher = make_model(0), make_model(1)
    engine = CountedEngine(HFEngine(student))
    tree = {"rollout": {"prompts_per_step": 4, "max_new_tokens": 5}}
    opd.train(
        {
            **tree,
            "student": "s",
            "prompts": {"path": "p"},
            "optimizer": {"steps": 3},
            "log": [],
            "report": False,
            "out": str(tmp_path / "a"),
        },
        student=student,
        teacher=teacher,
        prompts=PROMPTS,
        engine=engine,
    )
    assert engine.calls == engine.synced == 3  # it gets the weights of each step before the rollouts


def test_a_view_shows_the_teacher_every_batch(tmp_path: Path) -> None:
    view = CountedView(PlainView())
    train(tmp_path / "run", teacher=make_model(1), view=view)
    assert view.calls == 2


def test_an_author_writes_the_hints_of_a_hint_view(tmp_path: Path) -> None:
    result = train(tmp_path / "run", {"teacher": {"view": {"type": "hint", "place": "start"}}}, author=FirstToken())
    assert result.steps == 2


def test_a_sampler_makes_the_rollouts(tmp_path: Path) -> None:
    result = train(tmp_path / "run", teacher=make_model(1), sampler=OneRollout())
    assert result.tokens == 2 * 4 * 3


def test_a_signal_is_a_teacher_and_an_objective(tmp_path: Path) -> None:
    pair = LocalTeacher(make_model(1)), FullVocabulary(divergence="reverse_kl")
    as_pair = train(tmp_path / "pair", {"teacher": {"view": {"type": "hint"}}}, signal=pair, author=FirstToken())
    assert as_pair.steps == 2


def test_a_divergence_is_used_by_the_loss(tmp_path: Path) -> None:
    calls = []

    def density(log_p: Any, log_q: Any, p: Any, q: Any, beta: float) -> Any:
        calls.append(1)
        return (p - q) * (log_p - log_q).expm1()

    chi_squared = Divergence(density, lambda log_p, log_q, p, q, beta: 2 * p * (log_p - log_q).expm1())
    train(tmp_path / "run", teacher=make_model(1), divergence=chi_squared)
    assert calls
    with pytest.raises(ConfigError, match=r"loss.divergence: .* is a str. Fix: make it an opd.losses.Divergence"):
        train(tmp_path / "other", teacher=make_model(1), divergence="reverse")


def test_a_value_of_an_axis_is_given_as_well_as_what_it_builds(tmp_path: Path) -> None:
    from opd.axes.views.hint import Hint as HintConfig

    result = train(tmp_path / "run", view=HintConfig(place="start"), author=FirstToken())
    assert result.steps == 2
    assert HintView.__module__ == HintConfig.__module__


def test_held_out_prompts_are_those_that_are_given(tmp_path: Path) -> None:
    result = opd.train(
        "opd",
        {"optimizer.steps": 1, "rollout.prompts_per_step": 4, "eval.diagnostics": 0, "log": [], "out": str(tmp_path)},
        eval_prompts=[{"prompt": "3 + 4", "answer": "7"}],
    )
    assert result.before["accuracy"] in (0.0, 1.0)


class Unknown:
    def on_step_end(self, step: int) -> None: ...


class Table:
    """Iterates over the names of its columns, as a data frame does."""

    columns = ("prompt", "answer")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("objects", "sentence"),
    [
        ({"engine": "hf"}, r"engine: 'hf' has no generate\(\) and no sync\(\). Fix"),
        ({"sampler": 5}, r"sampler: 5 has no rollout\(\)"),
        ({"view": object()}, r"view: .* has no segments\(\)"),
        ({"view": CountedView}, "view: an object is needed .got the class CountedView."),
        ({"author": "rules"}, r"author: 'rules' has no hints\(\)"),
        ({"task": "math"}, r"task: 'math' has neither step\(\) nor right\(\).*prompts.task"),
        ({"signal": "full"}, "signal: a pair .teacher, objective. is needed .got 'full'."),
        ({"signal": (1, 2)}, r"signal\[0\]: 1 has no score\(\)"),
        ({"eval_prompts": "math"}, "eval_prompts: a list of prompts is needed .got 'math'.*eval.prompts"),
        ({"eval_prompts": Table()}, r"eval_prompts: a table is no list of prompts .*table.to_dict\('records'\)"),
        ({"callbacks": [Unknown()]}, r"callbacks\[0\]: an object with at least one of start\(\), step\(\), .*Unknown"),
        ({"callbacks": Unknown()}, "callbacks: a list of callbacks is needed"),
        ({"teacher": ("a", "b")}, r"a pair \(model, tokenizer\) .*Fix: .* teacher.model"),
    ],
)
def test_an_object_that_does_not_fit_is_refused_before_the_run(
    tmp_path: Path, objects: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train(tmp_path / "run", **objects)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", [None, 5, ("a", "b")])
def test_a_model_that_is_none_is_refused_by_the_library_too(model: Any) -> None:
    for call in (lambda: opd.load_model(model), lambda: opd.evaluate(model, "math")):
        with pytest.raises(ConfigError, match=r"a model given from Python is a pair \(model, tokenizer\)"):
            call()


def test_prompts_that_are_one_string_are_not_read_letter_by_letter(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompts: a list of prompts is needed .got 'math'.*override prompts"):
        opd.train("opd", {"out": str(tmp_path / "run")}, prompts="math")
    with pytest.raises(OpdError, match="prompts: row 2 is 5. Fix: give a string"):
        opd.train("opd", {"out": str(tmp_path / "run"), "log": []}, prompts=["a", 5])  # type: ignore[list-item]


@pytest.mark.parametrize("overrides", ["optimizer.steps=1", None, 5, [5]])
def test_overrides_are_a_mapping_or_strings(overrides: Any) -> None:
    with pytest.raises(ConfigError, match="overrides are a mapping or a list of strings"):
        opd.train("opd", overrides)


@pytest.mark.parametrize("source", [None, 5, ["opd"]])
def test_a_run_file_is_a_name_a_path_or_a_mapping(source: Any) -> None:
    with pytest.raises(ConfigError, match="a run file is a name, a path or a mapping"):
        opd.train(source)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_cannot_be_used_is_one_sentence(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: '{device}' cannot be used here .*Fix: set device=auto or cpu"):
        opd.train("opd", {"device": device, "out": str(tmp_path / "run")})


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"out: .* cannot be made \(Not a directory\). Fix: choose another folder"):
        train(tmp_path / "file" / "run", teacher=make_model(1))


@pytest.mark.parametrize("setting", ["samples", "max_new_tokens", "max_turns"])
def test_an_impossible_measurement_is_refused(setting: str) -> None:
    settings: dict[str, Any] = {setting: -1}
    with pytest.raises(ConfigError, match=f"{setting}: at least . is needed .got -1."):
        opd.evaluate("nano/math-base", "math", **settings)


class Nothing:
    """A teacher that forgets to return its signal."""

    def score(self, rollouts: Any, segments: Any) -> None: ...


def test_a_teacher_that_returns_no_signal_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"signal\[0\]: Nothing\.score\(\) returned None\. Fix: return an opd"):
        train(tmp_path / "run", {"teacher": {"weights": "ema"}}, signal=(Nothing(), lambda *given: None))


@pytest.mark.parametrize("prompts", [None, 3, ["a"]])
def test_evaluate_needs_prompts_that_it_can_name(prompts: Any) -> None:
    with pytest.raises(ConfigError, match=r"^prompts: .* names none\. Fix: give a task's name"):
        opd.evaluate("nano/math-base", prompts)
