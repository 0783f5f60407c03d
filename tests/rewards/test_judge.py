"""Judges: local models and a real HTTP endpoint, one by one and in comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.config.read import read, validate
from opd.config.run import PromptsConfig
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.errors import ConfigError, ModelError
from opd.evaluation.metrics import summarise
from opd.models.chat import Chat
from opd.models.language import stop_ids
from opd.models.loading import load
from opd.rewards.build import RewardBuilder
from opd.rewards.functions import RewardedTask
from opd.rewards.judge import Judge
from opd.rollouts.sampler import Sampler
from opd.types import Message, Prompt, Rollout, Span
from support.chat_server import Server
from support.models import make_model
from support.small_runs import small_run


class Scripted:
    """A judge that answers by a rule, and remembers what it was asked."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.asked: list[tuple[Message, ...]] = []

    def answers(self, conversations: Sequence[tuple[Message, ...]]) -> list[str | None]:
        self.asked += conversations
        return [self.rule(conversation[-1]["content"]) for conversation in conversations]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def rollout(said: str, prompt: str = "p", answer: str | None = None) -> Rollout:
    return Rollout(
        prompt=Prompt(id=prompt, messages=({"role": "user", "content": f"question {prompt}"},), answer=answer),
        prompt_ids=(1,),
        completion_ids=(5, 2),
        completion_mask=(True, True),
        logprobs=(-1.0, -1.0),
        turns=(Span(0, 2),),
        finish="stop",
        transcript=({"role": "assistant", "content": said},),
    )


def test_each_answer_is_scored_once_and_one_without_a_verdict_has_no_reward() -> None:
    asks = Scripted(lambda text: {"good": "score: 8", "bad": "score: 1"}.get(text.rpartition(": ")[2]))
    judge = Judge(name="judge", asks=asks, rubric="Is it good?", see_answer=True)
    made = RewardedTask(None, [(judge, 1.0)]).rewarded(
        [rollout(t, answer="fine") for t in ("good", "bad", "good", "odd")]
    )
    assert [r.reward for r in made] == [0.8, 0.1, 0.8, None]
    assert len(asks.asked) == 3
    system, user = asks.asked[0]
    assert system["content"].startswith("Is it good? End with the line")
    assert user["content"] == "Reference answer: fine\nTranscript:\nuser: question p\nturn 1: good"
    assert summarise(made)["judge/unparsable"] == 0.25
    assert summarise(made)["reward"] == pytest.approx((0.8 + 0.1 + 0.8) / 3)


def test_answers_to_a_prompt_are_ranked_in_one_request() -> None:
    def rank(text: str) -> str:
        shown = {line: n for n, line in enumerate(text.split("\nAnswer ")[1:], 1)}
        order = sorted(shown, key=lambda line: -len(line))
        return "I like long ones.\n" + " > ".join(str(shown[line]) for line in order)

    asks = Scripted(rank)
    judge = Judge(name="judge", asks=asks, rubric="Which is longest?", compare=True)
    said = [rollout("aa"), rollout("aaaa"), rollout("aaa"), rollout("aaaa"), rollout("x", "q"), rollout("x", "q")]
    assert judge(said) == [0.0, 1.0, 0.5, 1.0, 0.5, 0.5]
    assert len(asks.asked) == 1
    assert judge([said[2], said[1], said[0]]) == [0.5, 1.0, 0.0]
    assert asks.asked[0] == asks.asked[1]  # the order of answers follows from their texts
    assert "user: question p\nAnswer 1:\n" in asks.asked[0][1]["content"]
    assert Judge(name="judge", asks=Scripted(lambda _: "both"), rubric="r", compare=True)(said[:2]) == [None, None]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"judge": {"model": "nano/critic"}}, "rubric is missing, and a judge needs one"),
        (
            {"judge": "nano/critic", "rubric": "r"},
            "a judge is a model. Fix: write {model: PATH} or {http: URL, model: NAME}",
        ),
        ({"judge": {"http": "http://x/v1"}, "rubric": "r"}, "model.*missing"),
        ({"judge": {"http": "ftp://x", "model": "m"}, "rubric": "r"}, r"reward.0.judge.http: this is no address"),
        ({"judge": {"http": 5, "model": "m"}, "rubric": "r"}, r"reward.0.judge.http' has to be a string"),
        ({"judge": {"http": "http://x/v1", "model": "m", "retires": 1}, "rubric": "r"}, "unknown key .*retires"),
        ({"judge": {"model": "m", "instruction": "i"}, "rubric": "r"}, "a judge's instruction is the rubric"),
        (
            {"judge": {"model": "m"}, "function": "task", "rubric": "r"},
            "function and judge is needed .got function and judge",
        ),
        (
            {"judge": {"model": "m"}, "rubric": "r", "compare": True, "verdicts": {"a": 1, "b": 0}},
            "leave one of them out",
        ),
        ({"judge": {"model": "m"}, "rubric": "r", "verdicts": {"a": 1}}, "verdicts"),
    ],
)
def test_a_wrong_judge_is_one_sentence(reward: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read("grpo", {"prompts.reward": reward})


def test_a_judge_is_written_back_as_it_is_read() -> None:
    for judge in ({"model": "nano/critic"}, {"http": "http://localhost:1/v1", "model": "m", "retries": 0}):
        config = validate(
            PromptsConfig, {"task": "math", "reward": {"judge": judge, "rubric": "r", "verdicts": {True: 1, False: 0}}}
        )
        assert config.reward is not None
        assert config.reward[0].verdicts == {"yes": 1.0, "no": 0.0}
        assert validate(PromptsConfig, config.model_dump(mode="json")) == config


def test_equal_judges_are_loaded_once_and_held_out_answers_are_not_compared() -> None:
    tree = {"judge": {"http": "http://localhost:1/v1", "model": "m"}, "rubric": "r"}
    source = validate(PromptsConfig, {"task": "math", "reward": [tree, {**tree, "compare": True}]})
    build = RewardBuilder(device="cpu")
    task = build.task(None, source.reward, key="prompts.reward")
    assert isinstance(task, RewardedTask)
    assert [reward.name for reward, _ in task.rewards] == ["judge", "judge_2"]
    assert len(build.judges) == 1
    held_out = build.task(None, source.reward, key="eval.prompts.reward", held_out=True)
    assert isinstance(held_out, RewardedTask)
    assert len(held_out.rewards) == 1


def test_a_comparison_needs_several_answers(tmp_path: Path) -> None:
    judge = {"judge": {"http": "http://localhost:1/v1", "model": "m"}, "rubric": "r", "compare": True}
    tree = small_run(tmp_path / "run", prompts={"path": "p.jsonl", "reward": judge})
    with pytest.raises(
        ConfigError, match="compare needs several rollouts of each prompt .rollout.rollouts_per_prompt=1"
    ):
        opd.train(
            tree, student=make_model(0), teacher=make_model(1), prompts=[{"prompt": f"{a} b"} for a in "abcdefgh"]
        )


def test_a_served_judge_is_read_from_what_a_run_writes_and_named_as_its_owner_wrote_it() -> None:
    judge = {"http": "http://localhost:1/v1", "model": "m", "retries": 0}
    written = read("grpo", {"prompts.reward": {"judge": judge, "rubric": "r"}}).model_dump(mode="json")
    again = read(written).prompts.reward
    assert again
    task = RewardBuilder(device="cpu").task(None, again, key="prompts.reward")
    assert isinstance(task, RewardedTask)
    with pytest.raises(ModelError, match=r"^prompts.reward.judge.http: no answer from 'http://localhost:1/v1/chat"):
        task.rewards[0][0]([rollout("a")])


def test_a_run_with_a_judge_behind_an_endpoint(tmp_path: Path, server: Server) -> None:
    server.answers = ["score: 3", "score: 9", "no idea"] * 20
    judge = {"judge": {"http": server.url, "model": "m", "concurrency": 1}, "rubric": "Is it short?"}
    tree = small_run(
        tmp_path / "run",
        prompts={"path": "p.jsonl", "reward": judge},
        loss={"divergence": "reverse_kl", "reward": 0.5},
        rollout={"prompts_per_step": 2, "rollouts_per_prompt": 4, "max_new_tokens": 4},
        optimizer={"lr": 1e-3, "steps": 2},
    )
    prompts = [{"prompt": f"{a} {b}"} for a in "abcd" for b in "ef"]
    result = opd.train(tree, student=make_model(0), teacher=make_model(1), prompts=prompts, eval_prompts=prompts[:3])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["train"] for row in rows if "train" in row]
    assert all(0.3 <= step["reward"] <= 0.9 and 0 < step["judge/unparsable"] < 1 for step in steps)
    assert {"reward", "judge/unparsable", "teacher_reward"} <= result.after.keys()
    assert "accuracy" not in result.after
    asked = server.requests[0]["messages"]
    assert asked[0]["content"].startswith("Is it short? End with")


@pytest.mark.slow
def test_the_bundled_judge_agrees_with_the_checker() -> None:
    reward = read("opd-rlaif").prompts.reward
    task = RewardBuilder(device="cpu").task(get_task("tools"), reward, key="prompts.reward")
    model = load("nano/tools-base", key="student")
    sampler = Sampler(
        HFEngine(model), Chat(model.tokenizer), task, stop_ids=stop_ids(model), max_new_tokens=64, max_turns=5
    )
    made = sampler.rollout(list(get_task("tools").prompts("test"))[:96], 0)
    assert sum(r.reward == float(bool(r.correct)) for r in made) > 86
    assert summarise(made)["judge/unparsable"] == 0
