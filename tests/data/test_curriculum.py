"""Prompts by what they still teach: probabilities, what is remembered, and that a killed run remembers it too."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import opd
from opd.axes.base import Objects
from opd.config.read import read
from opd.data.curriculum import Uniform
from opd.errors import ConfigError, DataError
from opd.experimental.curriculum import Adaptive, Interest
from opd.language.run import LanguageRun
from opd.loop import Loop
from opd.output.run_log import RunLog
from opd.types import Prompt, Rollout, Signal, Span
from support.altered import train_altered
from support.families import read_language
from support.interrupt import Interrupt
from support.models import make_model
from support.small_runs import PROMPTS as SMALL_PROMPTS
from support.small_runs import small_run

PROMPTS = [Prompt(id=name, text=name) for name in "abcdefgh"]


def curriculum(
    prompts: list[Prompt] = PROMPTS, batch: int = 3, samples: int = 2, seed: int = 0, **w: float
) -> Adaptive:
    return Adaptive(prompts, batch=batch, samples=samples, seed=seed, interest=Interest(**w))


def rollout(name: str, reward: float | None, source: Any = "student") -> Rollout:
    return Rollout(
        prompt=Prompt(id=name, text=name),
        prompt_ids=(1,),
        completion_ids=(2, 3),
        completion_mask=(True, True),
        logprobs=(-1.0, -1.0),
        turns=(Span(0, 2),),
        finish="stop",
        reward=reward,
        source=source,
    )


def learn(adaptive: Adaptive, step: int, seen: Sequence[tuple[str, float | None, Sequence[float]]], **more: Any) -> Any:
    """One rollout each, with its reward and the losses of some of its tokens."""
    rollouts = [rollout(name, reward, **more) for name, reward, _ in seen]
    where = [(i, p) for i, (_, _, losses) in enumerate(seen) for p in range(len(losses))]
    rollout_T, position_T = torch.tensor(where, dtype=torch.int64).reshape(-1, 2).unbind(1)
    loss_T = torch.tensor([x for _, _, losses in seen for x in losses])
    return adaptive.learn(step, rollouts, Signal(rollout_T, position_T, position_T + 2), loss_T)


def test_the_uniform_order_is_what_it_was() -> None:
    """The epochs' orders as the generator gives them, and nothing remembered."""
    uniform = Uniform(PROMPTS, batch=3, samples=2, seed=5)
    wanted = [
        n
        for epoch in range(2)
        for n in torch.randperm(8, generator=torch.Generator().manual_seed(5 * 1_000_003 + epoch)).tolist()
    ]
    drawn = [p.id for step in range(5) for p in uniform.step(step)]
    assert drawn == ["abcdefgh"[n] for n in wanted[:15] for _ in range(2)]
    assert uniform.tensors() == {}


def test_probabilities_equal_the_formula() -> None:
    weights: dict[str, Any] = {"success": 1.0, "divergence": 0.5, "staleness": 0.25, "uniform": 0.25}
    adaptive = curriculum(**weights, keep=0.5)
    assert adaptive.probabilities(0).tolist() == pytest.approx([1 / 8] * 8)
    learn(adaptive, 0, [("a", 1.0, [0.5, 1.5]), ("a", 0.0, [1.0]), ("b", 1.0, []), ("c", None, [0.2])])
    learn(adaptive, 2, [("a", 1.0, [3.0, 5.0]), ("d", 0.0, [math.nan, 2.0]), ("e", 0.0, [math.nan])])
    p = dict.fromkeys("abcdefgh", 1 / 2) | {
        "a": (1 + 0.5 * 1 + 1) / (2 + 0.5 * 2 + 1),
        "b": 2 / 3,
        "d": 1 / 3,
        "e": 1 / 3,
    }
    most = (0.5 * 1.0 + 4.0) / 1.5
    left = dict.fromkeys("abcdefgh", most) | {"b": 0.0, "c": 0.2, "d": 2.0}  # e's loss was no number: still unknown
    stale: dict[str, float] = dict.fromkeys("fgh", 4.0 + 1) | {"a": 2, "b": 4, "c": 4, "d": 2, "e": 2}
    scores: list[dict[str, float]] = [{n: p[n] * (1 - p[n]) for n in p}, left, stale, dict.fromkeys("abcdefgh", 1)]
    wanted = [
        sum(w * s[n] / math.fsum(s.values()) for w, s in zip(weights.values(), scores, strict=True)) / 2.0
        for n in "abcdefgh"
    ]
    assert adaptive.probabilities(4).tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_draws_have_the_chances_of_drawing_one_after_the_other() -> None:
    """Against an independent way of drawing without replacement, by Python's own generator."""
    adaptive = curriculum(batch=2, samples=1, success=1.0)
    learn(adaptive, 0, [(n, 1.0, []) for n in "abc" for _ in range(20)] + [("d", 0.0, [])])
    p = adaptive.probabilities(1).tolist()
    rng, counts, wanted = random.Random(0), Counter[str](), Counter[str]()
    for step in range(1, 4001):
        counts.update("".join(sorted(x.id for x in adaptive.step(step))) for _ in range(1))
        first = rng.choices(range(8), p)[0]
        second = rng.choices([n for n in range(8) if n != first], [x for n, x in enumerate(p) if n != first])[0]
        wanted["".join(sorted("abcdefgh"[n] for n in (first, second)))] += 1
    for pair in wanted | counts:
        assert abs(wanted[pair] - counts[pair]) < 5 * math.sqrt(2 * max(wanted[pair], counts[pair], 4)), pair


def test_a_batch_has_no_prompt_twice_and_hopeless_ones_come_last() -> None:
    adaptive = curriculum(batch=4, divergence=1.0)
    learn(adaptive, 0, [(n, 1.0, [0.0]) for n in "abcdef"] + [(n, 1.0, [1.0]) for n in "gh"])
    batches = [[p.id for p in adaptive.step(step)] for step in range(200)]
    for batch in batches:
        assert batch[::2] == batch[1::2]
        assert len(set(batch)) == 4
        assert {"g", "h"} < set(batch)
    rest = Counter(name for batch in batches for name in batch[::2])
    assert min(rest[name] for name in "abcdef") > 30
    assert batches != [[p.id for p in curriculum(batch=4, seed=1, divergence=1.0).step(s)] for s in range(200)]


def test_what_others_wrote_is_seen_and_no_evidence() -> None:
    adaptive = curriculum(success=1.0, divergence=1.0)
    figures = learn(adaptive, 0, [("a", 0.0, [9.0])], source="teacher")
    assert adaptive.last_N.tolist() == [0] + [-1] * 7
    assert not adaptive.tried_N.any()
    assert not adaptive.measured_N.any()
    assert figures["curriculum/seen"] == 1.0
    assert figures["curriculum/effective"] == pytest.approx(8.0)
    assert figures["curriculum/success"] == 0.5
    assert "curriculum/success" not in learn(adaptive, 1, [("b", None, [])])


def test_two_prompts_of_one_id_and_too_few_are_refused() -> None:
    with pytest.raises(DataError, match="two prompts have the id 'a'.*experimental.curriculum"):
        curriculum([*PROMPTS, PROMPTS[0]], success=1.0)
    with pytest.raises(DataError, match="fewer than one batch"):
        curriculum(PROMPTS[:2], success=1.0)


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("opd", ["experimental.curriculum.uniform=0"], "all weights are 0"),
        ("opd", ["experimental.curriculum.sucess=1"], "experimental.curriculum.success"),
        ("opd", ["experimental.curriculum.keep=1"], "experimental.curriculum.keep"),
        (
            "lightning",
            ["experimental.curriculum.success=1"],
            "needs rollouts made anew at each step .rollout.source=recorded",
        ),
        (
            "sft",
            ["experimental.curriculum.success=1"],
            "needs rollouts that the student writes .rollout.source=references",
        ),
        ("grpo", ["experimental.curriculum.divergence=1"], "needs a signal that a teacher gives .loss.signal=reward"),
        (
            "gold",
            ["experimental.curriculum.divergence=1"],
            "each token's distance to the teacher .loss.signal=other_tokenizer",
        ),
        (
            "tml",
            ["experimental.curriculum.divergence=1", "loss.signal.baseline=true"],
            "each token's distance .*loss.signal=sampled",
        ),
    ],
)
def test_a_curriculum_that_means_nothing_is_one_sentence(recipe: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read(recipe, overrides)
    assert "\n" not in str(caught.value)


ROWS = [{**row, "answer": "k l"} for row in SMALL_PROMPTS]


def train(
    out: Path, *, rows: Any = ROWS, watch: Watch | None = None, at: int | None = None, **changes: Any
) -> opd.Result:
    """Train, watched and cut off at a step if asked to; a run that exists is resumed."""
    weights = {"success": 1.0, "divergence": 1.0, "staleness": 0.1}
    tree = small_run(out, experimental={"curriculum": weights}, checkpoint={"every": 2})
    teacher = make_model(1, layers=3, hidden=48)
    student = make_model(0)
    return train_altered(
        watch.alter if watch else None,
        tree | changes,
        student=student,
        teacher=teacher,
        prompts=rows,
        resume=True,
        callbacks=[Interrupt(at)] if at else [],
    )


def test_success_needs_rewards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experimental.curriculum.success needs rewards, and nothing checks"):
        train(tmp_path / "out", rows=[{"prompt": row["prompt"]} for row in ROWS])
    assert not (tmp_path / "out").exists()


class Watch:
    """A curriculum that keeps what another one remembers after every step."""

    def __init__(self) -> None:
        self.memory: dict[int, dict[str, torch.Tensor]] = {}

    def alter(self, loop: Loop) -> Loop:
        self.inner = loop.curriculum
        return dataclasses.replace(loop, curriculum=self)

    def step(self, step: int) -> list[Prompt]:
        return self.inner.step(step)

    def learn(self, step: int, rollouts: Sequence[Rollout], signal: Signal, loss_T: torch.Tensor) -> dict[str, float]:
        metrics = self.inner.learn(step, rollouts, signal, loss_T)
        self.memory[step + 1] = {name: tensor.clone() for name, tensor in self.tensors().items()}
        return metrics

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.inner.tensors()

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.inner.load(tensors)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row["train"].items() if not k.endswith("_s")} for row in rows if "train" in row]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, again = Watch(), Watch()
    train(tmp_path / "whole", watch=whole)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", at=5)
    train(tmp_path / "cut", watch=again)
    assert again.memory.keys() == {5, 6}
    assert same(again.memory[6], whole.memory[6])
    assert whole.memory[6]["diverged"].any()
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert same(*(load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole")))
    last = rows_of(tmp_path / "whole")[-1]
    assert last["curriculum/seen"] == float((whole.memory[6]["last"] >= 0).sum())
    assert 8 < last["curriculum/effective"] < 32


def test_a_rollback_brings_back_what_was_known(tmp_path: Path) -> None:
    watch = Watch()
    result = train(
        tmp_path / "out",
        watch=watch,
        optimizer={"lr": 1.0, "steps": 10},
        guards={"recover": {"thresholds": {"kl_exploded": 1.5}, "lr": 0.5}},
        experimental={"curriculum": {"divergence": 1.0}},
        rows=[{"prompt": row["prompt"]} for row in ROWS],
    )
    back = next(e for e in result.events if e["kind"] == "rollback")
    to = int(back["text"].split("weights of step ")[1].split(";")[0])
    following = watch.memory[back["step"] + 1]["last"]
    wanted = watch.memory[to]["last"] if to else torch.full_like(following, -1)
    drawn = following == back["step"]
    assert drawn.sum() == 8
    assert torch.equal(following[~drawn], wanted[~drawn])
    assert not torch.equal(watch.memory[back["step"]]["last"][~drawn], wanted[~drawn])


def test_a_memory_of_other_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", at=5)
    with pytest.raises(opd.errors.CheckpointError, match="was started with 32 rows, and there are 31 now"):
        train(tmp_path / "out", rows=ROWS[:-1])


def test_the_loop_tells_the_mean_loss_of_each_prompts_tokens(tmp_path: Path) -> None:
    """In one step, micro-batch by micro-batch: weighted by their tokens, the prompts' means are the loss."""
    changes = {"experimental.curriculum.divergence": 1.0, "rollout.prompts_per_step": 8, "optimizer.micro_batch": 3}
    small = {"optimizer.steps": 1, "prompts.limit": 16, "eval.prompts.limit": 8, "log": [], "out": str(tmp_path / "r")}
    config = read_language("opd", {**changes, **small})
    loop = LanguageRun.load(config, Objects()).assemble(RunLog(tmp_path / "metrics.jsonl", [], []))
    assert isinstance(loop.curriculum, Adaptive)
    tokens = Counter({r.prompt.id: r.num_tokens for r in loop.sampler.rollout(loop.curriculum.step(0), 0, 0)})
    metrics = loop._step(0)
    means = {p.id: float(loop.curriculum.diverged_N[n]) for n, p in enumerate(loop.curriculum.prompts)}
    assert sum(means[name] * number for name, number in tokens.items()) / tokens.total() == pytest.approx(
        metrics["distill"], rel=1e-5
    )
    assert loop.curriculum.measured_N.sum() == 8
