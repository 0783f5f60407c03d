"""The bundled models: weak at the tasks, confident with a hint or solution."""

from __future__ import annotations

import dataclasses

import pytest

from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.evaluation.metrics import summarise
from opd.models.chat import Chat
from opd.models.language import stop_ids
from opd.models.loading import load
from opd.nano.traces import PRIVILEGED
from opd.rollouts.sampler import Sampler
from opd.teachers.hints import ModelAuthor, RulesAuthor
from opd.types import Metrics, Prompt, Rollout, Sampling
from support.slow import slow_but

NUMBER = 96
"""Number of prompts per accuracy; the bounds below allow for three standard errors."""


def rollouts(name: str, prompts: list[Prompt], temperature: float = 0.0) -> list[Rollout]:
    model = load(f"nano/{name}", key="student")
    engine = HFEngine(model)
    task = get_task(prompts[0].domain)
    return Sampler(
        engine,
        Chat(model.tokenizer),
        task,
        sampling=Sampling(temperature=temperature),
        stop_ids=stop_ids(model),
        max_new_tokens=96,
        max_turns=5,
    ).rollout(prompts, 0)


def metrics_of(name: str, prompts: list[Prompt]) -> Metrics:
    return summarise(rollouts(name, prompts))


def test_tools_base_invents_tools() -> None:
    measured = metrics_of("tools-base", list(get_task("tools").prompts("test"))[:NUMBER])
    assert 0.35 < measured["invalid_call_rate"] < 0.75
    assert 0.1 < measured["accuracy"] < 0.4


@pytest.mark.parametrize("event", slow_but([None, "no such tool", "bad arguments"], None))
def test_tools_base_uses_listed_tools_when_reminded(event: str | None) -> None:
    text = "Reminder: available tools: {tools}."
    if event:
        text = "Reminder: this call is not valid: {error}. available tools: {tools}."
    reminded = [
        dataclasses.replace(
            prompt,
            messages=(
                *(prompt.messages or ()),
                {"role": "user", "content": text.format(tools=prompt.data["listing"], error=event)},
            ),
        )
        for prompt in get_task("tools").prompts("test")[:NUMBER]
    ]
    measured = metrics_of("tools-base", reminded)
    assert measured["invalid_call_rate"] < 0.05
    assert measured["accuracy"] > 0.9


@pytest.mark.slow
def test_math_base_is_weak_alone_and_confident_with_the_solution() -> None:
    prompts = list(get_task("math").prompts("test"))[:NUMBER]
    assert 0.2 < metrics_of("math-base", prompts)["accuracy"] < 0.65
    questions = [(prompt.messages or ())[0]["content"] for prompt in prompts]
    texts = [PRIVILEGED.format(question=q, answer=p.answer) for q, p in zip(questions, prompts, strict=True)]
    privileged = [
        dataclasses.replace(prompt, messages=({"role": "user", "content": text},))
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    assert metrics_of("math-base", privileged)["accuracy"] > 0.95


@pytest.mark.parametrize("task", ["math", "tools", "strings", "search"])
def test_base_is_weak_at_every_task(task: str) -> None:
    assert 0.05 < metrics_of("base", list(get_task(task).prompts("test"))[:NUMBER])["accuracy"] < 0.5


@pytest.mark.parametrize("name", slow_but(["math-teacher", "math-teacher-bpe"], "math-teacher"))
def test_math_teachers_are_accurate(name: str) -> None:
    assert metrics_of(name, list(get_task("math").prompts("test"))[:NUMBER])["accuracy"] > 0.95


@pytest.mark.slow
def test_the_critic_agrees_with_the_rules() -> None:
    written = rollouts("tools-base", list(get_task("tools").prompts("test"))[:NUMBER], temperature=1.0)
    critic = load("nano/critic", key="author")
    engine = HFEngine(critic)
    author = ModelAuthor(engine, Chat(critic.tokenizer), stop_ids=stop_ids(critic))
    found = [{hint.span for hint in hints} for hints in author.hints(written)]
    faulty = [{hint.span for hint in hints} for hints in RulesAuthor().hints(written)]
    assert sum(map(len, faulty)) > 20
    assert sum(a == b for a, b in zip(found, faulty, strict=True)) > 0.95 * NUMBER
