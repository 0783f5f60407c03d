"""Where turns end: each model's own tokens, the run file's further stops, and students that differ from a teacher."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import opd
from opd import api
from opd.axes.base import Objects
from opd.config.read import read
from opd.engines.hf import HFEngine
from opd.errors import ConfigError
from opd.models.chat import Chat
from opd.models.ends import differences, stops_of
from opd.models.language import LanguageModel
from opd.rollouts.sampler import Sampler
from opd.types import Generation, Prompt
from support.models import make_model
from support.small_runs import PROMPTS, small_run

END, OTHER = 2, 25
"""``</s>``, which the tokenizer's template puts behind a turn, and ``user``."""


def base_model(seed: int = 0) -> LanguageModel:
    """A model that was never taught the template's turn end: no template, and another EOS token."""
    model = make_model(seed, template=False, eos=(OTHER,))
    model.tokenizer.eos_token = "user"
    return model


class Scripted:
    """An engine that writes the same ids whatever the context."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = tuple(ids)
        self.stops: list[frozenset[int]] = []

    def generate(self, contexts: Any, max_new_tokens: Any, *, stop_ids: frozenset[int], **given: Any) -> Any:
        self.stops.append(stop_ids)
        return [Generation(self.ids[:n], tuple(-float(i) for i in self.ids[:n]), stopped=False) for n in max_new_tokens]

    def sync(self) -> None:
        pass


def test_further_stops_are_ids_texts_of_one_token_and_other_texts() -> None:
    model = make_model()
    stops = stops_of(model, (7, "<pad>", "a", "a b"))
    assert stops.ids == {END, 7, 0, 4}
    assert stops.texts == ("a", "a b")
    with pytest.raises(ConfigError, match=r"rollout.stop: no token of 'tiny-0' has the id 31. Fix: give an id from 0"):
        stops_of(model, (31,))
    with pytest.raises(ConfigError, match=r"rollout.stop: an empty text ends no turn. Fix: leave it out"):
        read("opd", ["rollout.stop=['']"])
    with pytest.raises(ConfigError, match="rollout.stop: True is no token. Fix: give a token's id"):
        read("opd", ["rollout.stop=[true]"])


def test_a_text_ends_the_turn_at_the_token_that_completes_it() -> None:
    model = make_model()
    ids = [4, 5, 6, 7, 8, 9]  # a b c d e f
    sampler = Sampler(
        Scripted(ids), Chat(model.tokenizer), None, stop_ids=frozenset(), max_new_tokens=6, stop_texts=("c d", "x y")
    )
    [rollout] = sampler.rollout([Prompt(id="p", text="g")], 0)
    assert rollout.completion_ids == (4, 5, 6, 7)
    assert rollout.logprobs == (-4.0, -5.0, -6.0, -7.0)
    assert rollout.finish == "stop"
    [whole] = dataclasses.replace(sampler, stop_texts=("x y",)).rollout([Prompt(id="p", text="g")], 0)
    assert whole.completion_ids == tuple(ids)
    assert whole.finish == "length"


def test_a_teacher_with_another_end_is_named_and_a_stop_settles_it() -> None:
    student, teacher = base_model(), make_model(1)
    [sentence] = differences(student, {"teacher.model": teacher})
    assert sentence.startswith("teacher.model ends turns with '</s>', at which the student does not stop")
    assert sentence.endswith("Fix: set rollout.stop=['</s>']")
    assert not list(differences(student, {"teacher.model": teacher}, ("</s>",)))
    assert not list(differences(make_model(0), {"teacher.model": teacher}))
    [sentence] = differences(make_model(0, eos=(OTHER, END)), {"teacher.models.x": base_model(1)})
    assert "the student ends turns with '</s>', which is no end for teacher.models.x" in sentence


def test_a_student_without_an_end_has_none_to_unlearn() -> None:
    models = []
    for seed in (0, 1):
        models.append(make_model(seed, template=False))
        models[-1].tokenizer.eos_token = None
        models[-1].model.generation_config.eos_token_id = None
    assert not list(differences(models[0], {"teacher.model": models[1]}))


def run_of(out: Path, **rollout: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    tree = small_run(out, optimizer={"lr": 1e-3, "steps": 1}, report=False)
    tree["rollout"] |= rollout
    tree["loss"] = {"signal": "full", "divergence": "reverse_kl"}
    return tree, {"student": base_model(), "teacher": make_model(1), "prompts": PROMPTS}


def test_each_model_rolls_out_to_its_own_end(tmp_path: Path) -> None:
    tree, given = run_of(tmp_path / "out")
    objects = Objects(**given)
    context = api.load(read(tree, objects.keys()), objects).context  # type: ignore[attr-defined]
    assert context.sampler().stop_ids == {OTHER}
    assert context.sampler(model=context.teacher_model).stop_ids == {END}
    ids = frozenset({END, OTHER})
    tree, given = run_of(tmp_path / "out", stop=["</s>"])
    context = api.load(read(tree, objects.keys()), objects).context  # type: ignore[attr-defined]
    assert context.sampler().stop_ids == ids
    engine = HFEngine(context.student)
    rollouts = dataclasses.replace(context.sampler(), engine=engine, max_new_tokens=64).rollout(context.prompts * 8, 0)
    ends = {r.completion_ids[-1] for r in rollouts if r.finish == "stop"}
    assert ends == ids


def test_doctor_and_train_report_it(tmp_path: Path) -> None:
    tree, given = run_of(tmp_path / "out")
    objects = Objects(**given)
    lines = list(api.load(read(tree, objects.keys()), objects).findings())
    assert "stops     'user'" in lines
    assert any(line.startswith("WARNING   teacher.model ends turns with '</s>'") for line in lines)
    result = opd.train(tree, **given)
    rows = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    assert any("at which the student does not stop" in row["event"]["text"] for row in rows if "event" in row)
