"""Reward functions: what they get, what their sum is, and whole runs with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import opd
from opd.config.read import read, validate
from opd.config.run import PromptsConfig
from opd.data.answers import AnswerTask, EachItsOwn
from opd.data.rows import from_rows
from opd.errors import ConfigError, DataError
from opd.evaluation.metrics import summarise
from opd.language.measure import measure_model
from opd.rewards.build import RewardBuilder
from opd.rewards.functions import FromFunction, OwnCheck, RewardedTask, row
from opd.teachers.sampled import GroupAdvantages
from opd.types import Message, Observation, Prompt, Rollout, Segment, Span
from support.models import make_model
from support.small_runs import small_run

ROWS = [
    {"prompt": "a b", "answer": "c", "id": "one", "level": 3},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "d"}], "answer": ["e", "f"]},
]


def rollout(prompt: Prompt, said: str, reward: float | None = None) -> Rollout:
    return Rollout(
        prompt=prompt,
        prompt_ids=(1,),
        completion_ids=(5, 2),
        completion_mask=(True, True),
        logprobs=(-1.0, -1.0),
        turns=(Span(0, 2),),
        finish="stop",
        reward=reward,
        transcript=({"role": "assistant", "content": said},),
    )


def length(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
    return float(len(completion))


def has_a(prompt: str, completion: str, row: Mapping[str, Any]) -> torch.Tensor | None:
    return None if row["domain"] == "other" else torch.tensor("a" in completion)


class Callable_:
    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> int:
        return 1


def broken(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
    return float(row["nothing"])


def worded(prompt: str, completion: str, row: Mapping[str, Any]) -> str:
    return "good"


def two(prompt: str, completion: str) -> float:
    return 1.0


HERE = "test_functions_module"
"""The name of the module that ``beside`` writes."""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working directory with a module of reward functions."""
    (tmp_path / f"{HERE}.py").write_text(
        "def length(prompt, completion, row):\n    return len(completion)\n\n"
        "def two(prompt, completion):\n    return 1\n\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    return HERE


def test_a_function_gets_the_question_the_last_turn_and_the_whole_row() -> None:
    prompts, _ = from_rows(ROWS, key="prompts", chat=True)
    seen: list[tuple[str, str, dict[str, Any]]] = []
    FromFunction("f", lambda *given: seen.append(given), "f")([rollout(p, "x y") for p in prompts])
    assert [given[:2] for given in seen] == [("a b", "x y"), ("d", "x y")]
    assert seen[0][2] | {"messages": None} == {
        "id": "one", "answer": "c", "domain": "default", "level": 3, "messages": None,
    }  # fmt: skip
    assert seen[1][2]["answer"] == ["e", "f"]
    assert seen[1][2]["messages"] == ROWS[1]["messages"]
    assert row(Prompt(id="t", text="a"))["prompt"] == "a"


def test_rewards_are_added_up_and_one_that_does_not_apply_is_left_out() -> None:
    here, there = Prompt(id="here", text="q"), Prompt(id="there", text="q", domain="other")
    parts = [(FromFunction("length", length, "m:length"), 0.5), (FromFunction("has_a", has_a, "m:has_a"), 2.0)]
    made = RewardedTask(None, parts).rewarded([rollout(p, s) for p in (here, there) for s in ("abc", "xy")])
    assert [r.reward for r in made] == [0.5 * 3 + 2, 0.5 * 2, 0.5 * 3, 0.5 * 2]
    assert made[0].rewards == {"length": 3.0, "has_a": 1.0}
    assert made[2].rewards == {"length": 3.0, "has_a": None}
    measured = summarise(made)
    assert "accuracy" not in measured
    assert measured["reward"] == sum([3.5, 1.0, 1.5, 1.0]) / 4
    assert (measured["rewards/length"], measured["rewards/has_a"]) == (2.5, 0.5)


def test_a_reward_that_some_rollouts_of_a_prompt_lack_leaves_these_without_any() -> None:
    prompt, numbers = Prompt(id="p", text="q"), iter([1.0, None, 3.0])
    made = RewardedTask(None, [(FromFunction("f", lambda *_: next(numbers), "f"), 1.0), (OwnCheck(), 1.0)]).rewarded(
        [rollout(prompt, "a", 1.0) for _ in range(3)]
    )
    assert [r.reward for r in made] == [2.0, None, 4.0]


def test_rollouts_without_a_reward_are_in_no_group() -> None:
    prompt = Prompt(id="p", text="q")

    def advantages(*rewards: float | None) -> list[tuple[int, float]]:
        rollouts = [rollout(prompt, "a", reward) for reward in rewards]
        segments = [Segment(n, (1,), Span(0, 2)) for n in range(len(rollouts))]
        signal = GroupAdvantages().score(rollouts, segments)
        rows = zip(signal.rollout_T.tolist(), signal.advantage_T.tolist(), strict=True)
        return sorted({(n, round(advantage, 4)) for n, advantage in rows})

    assert advantages(1.0, 0.0, None, None) == [(0, 1.0), (1, -1.0)]
    assert advantages(1.0, 1.0, None, None) == []
    assert advantages(None, None) == []
    assert advantages(1.0, 0.0) == [(0, 1.0), (1, -1.0)]


def test_a_function_that_fails_is_named_with_its_prompt() -> None:
    made = [rollout(Prompt(id="p7", text="q"), "a")]
    with pytest.raises(
        DataError, match="prompts.reward: m:broken raised KeyError: 'nothing' .*line .* on prompt 'p7'. Fix"
    ):
        FromFunction("broken", broken, "m:broken")(made)
    with pytest.raises(
        DataError, match="prompts.reward: m:worded gave 'good' as the reward of prompt 'p7', which is no number"
    ):
        FromFunction("worded", worded, "m:worded")(made)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nowhere:length", "prompts.reward.*'nowhere:length' cannot be imported: No module named 'nowhere'"),
        (f"{HERE}:nothing", "cannot be imported: .*no attribute 'nothing'"),
        ("length", "'length' cannot be imported: it names no object. Fix: write it as package.module:Name"),
        (f"{HERE}:number", f"'{HERE}:number' is no function. Fix: write def reward"),
        (f"{HERE}:two", "cannot be called with a prompt, a completion and a row"),
        ({"weight": 1.0}, "exactly one of function and judge is needed .got only weight"),
        ({"function": "task", "rubric": "x"}, "rubric is a judge's, and there is none"),
        ({"function": "task", "wieght": 1.0}, "unknown key 'prompts.reward.*wieght'.*did you mean"),
    ],
)
def test_a_wrong_reward_is_refused_before_anything_is_loaded(beside: str, given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read("grpo", {"prompts.reward": given})


def test_a_reward_in_every_form_it_may_be_written(beside: str) -> None:
    name = f"{beside}:length"
    for given in (name, {"function": name}, [name], [{"function": name, "weight": 1.0}]):
        config = validate(PromptsConfig, {"task": "math", "reward": given})
        assert [(r.function, r.weight) for r in config.reward or ()] == [(name, 1.0)]
        assert validate(PromptsConfig, config.model_dump(mode="json")) == config
    both = validate(PromptsConfig, {"task": "math", "reward": ["task", {"function": name, "weight": 0.1}]})
    assert [r.weight for r in both.reward or ()] == [1.0, 0.1]
    with pytest.raises(ConfigError, match="reward"):
        read("diffusion-opd", {"prompts.reward": name})


def test_functions_from_python_and_what_is_no_function() -> None:
    build = RewardBuilder(device="cpu", given=[length, (has_a, 0.5), Callable_()])
    task = build.task(AnswerTask(), None, key="prompts.reward")
    assert isinstance(task, RewardedTask)
    assert [(reward.name, weight) for reward, weight in task.rewards] == [
        ("length", 1.0),
        ("has_a", 0.5),
        ("reward", 1.0),
    ]
    twice = RewardBuilder(device="cpu", given=[length, length]).task(None, None, key="prompts.reward")
    assert isinstance(twice, RewardedTask)
    assert [reward.name for reward, _ in twice.rewards] == ["length", "length_2"]
    for given in (3, [3], two, list):
        with pytest.raises(ConfigError, match="reward: .*Fix: "):
            RewardBuilder(device="cpu", given=given).task(None, None, key="prompts.reward")
    for weight in ("x", float("nan"), None):
        with pytest.raises(
            ConfigError, match=f"reward: the weight of a function is {weight!r}. Fix: give a finite number"
        ):
            RewardBuilder(device="cpu", given=[(length, weight)]).task(None, None, key="prompts.reward")
    with pytest.raises(ConfigError, match="'task' stands for the prompts' own check, and they have none"):
        RewardBuilder(device="cpu", given=["task"]).task(None, None, key="prompts.reward")


def test_each_source_of_a_mix_keeps_its_reward() -> None:
    prompts = [Prompt(id=n, text="q") for n in "ab"]
    own = RewardedTask(None, [(FromFunction("f", lambda *_: 7, "f"), 1.0)])
    made = EachItsOwn({"a": own, "b": AnswerTask()}).rewarded([rollout(p, "x", 0.5) for p in prompts])
    assert [r.reward for r in made] == [7.0, 0.5]


GRPO = {"loss": {"signal": "reward"}, "rollout": {"prompts_per_step": 4, "rollouts_per_prompt": 4, "max_new_tokens": 4}}


def lines(out: Path, kind: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row[kind] for row in rows if kind in row]


def test_a_run_with_a_function_from_python(tmp_path: Path) -> None:
    tree = small_run(tmp_path / "run", **GRPO, optimizer={"lr": 1e-3, "steps": 2})
    del tree["teacher"]
    prompts = [{"prompt": f"{a} {b}", "answer": "c"} for a in "abcd" for b in "efgh"]
    result = opd.train(
        tree, student=make_model(0), prompts=prompts, eval_prompts=prompts[:4], reward=[(length, -1.0), (has_a, 0.25)]
    )
    steps = lines(tmp_path / "run", "train")
    assert len(steps) == 2
    assert all(step["reward"] < 0 and step["rewards/length"] > 0 and "accuracy" in step for step in steps)
    assert {"policy_gradient", "policy_gradient_share"} <= steps[0].keys()
    assert result.after["reward"] < 0
    assert "accuracy" in result.after
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    assert saved["prompts"]["reward"][0]["function"] == "given from Python"


def test_a_run_file_names_a_function_and_evaluation_takes_it_too(beside: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"{a} {b}"}) + "\n" for a in "abcd" for b in "ef"))
    prompts = {"path": "p.jsonl", "reward": f"{beside}:length"}
    held_out = {"prompts": {"path": "p.jsonl", "limit": 2}}
    tree = small_run(tmp_path / "run", **GRPO, prompts=prompts, eval=held_out, optimizer={"lr": 1e-3, "steps": 1})
    del tree["teacher"]
    result = opd.train(tree, student=make_model(0))
    assert result.after["reward"] > 0
    assert "accuracy" not in result.after
    measured = measure_model(
        make_model(0), validate(PromptsConfig, prompts), samples=2, max_new_tokens=4, max_turns=1, device="cpu"
    )
    assert {"reward", "reward@2"} <= measured.keys()


def test_prompt_objects_with_answers_are_checked(tmp_path: Path) -> None:
    tree = small_run(tmp_path / "run", **GRPO, optimizer={"lr": 1e-3, "steps": 1})
    del tree["teacher"]
    prompts = [
        Prompt(id=f"{a}{b}", messages=({"role": "user", "content": f"{a} {b}"},), answer="c")
        for a in "abcd"
        for b in "ef"
    ]
    with pytest.raises(opd.OpdError, match="equal in every group"):
        opd.train(tree, student=make_model(0), prompts=prompts, eval_prompts=prompts[:2])
    assert lines(tmp_path / "run", "eval")[0]["accuracy"] == 0.0


def test_a_run_whose_answers_never_had_a_reward_says_so(tmp_path: Path) -> None:
    tree = small_run(tmp_path / "run", **GRPO, optimizer={"lr": 1e-3, "steps": 1})
    del tree["teacher"]
    prompts = [Prompt(id=str(n), messages=({"role": "user", "content": "a b"},)) for n in range(8)]
    with pytest.raises(opd.OpdError, match="no group had two answers with different rewards: they were equal, or None"):
        opd.train(tree, student=make_model(0), prompts=prompts, reward=lambda prompt, completion, row: None)


def test_a_reward_that_was_not_given_is_asked_for(tmp_path: Path) -> None:
    tree = small_run(tmp_path / "run", **GRPO)
    del tree["teacher"]
    tree["prompts"] = {"path": "p.jsonl", "reward": "given from Python"}
    with pytest.raises(ConfigError, match="opd.train got no reward. Fix: call opd.train"):
        opd.train(tree, student=make_model(0), prompts=[{"prompt": "a"}] * 4)


def test_several_rewards_of_a_rollout_survive_a_copy() -> None:
    made = dataclasses.replace(rollout(Prompt(id="p", text="q"), "a", 1.0), rewards={"judge": None})
    assert summarise([made])["judge/unparsable"] == 1.0


class Letters:
    """A task of its own, with or without held-out prompts."""

    def __init__(self, splits: Sequence[str]) -> None:
        self.splits = splits

    def prompts(self, split: str) -> Sequence[Prompt]:
        if split not in self.splits:
            raise KeyError(split)
        return [Prompt(id=f"{split}/{a}", messages=({"role": "user", "content": a},)) for a in "abcdefgh" * 4]

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        return Observation(reward=float(len(transcript[-1]["content"])))


@pytest.mark.parametrize("splits", [("train", "test"), ("train",)])
def test_a_task_without_prompts_brings_its_own_to_a_recipe(splits: Sequence[str], tmp_path: Path) -> None:
    small = {"optimizer.steps": 1, "optimizer.warmup": 0, "rollout.max_new_tokens": 4, "report": False, "log": []}
    result = opd.train("grpo", {**small, "out": str(tmp_path / "run")}, student=make_model(0), task=Letters(splits))
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (saved["prompts"]["task"], saved["prompts"]["path"]) == (None, "given from Python")
    assert ("reward" in result.after) == ("test" in splits)
    assert "accuracy" not in lines(tmp_path / "run", "train")[0]
