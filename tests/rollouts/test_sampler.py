"""Trajectories of a real model in a real environment: what is in them, who chose it, and how they end."""

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest

from opd.axes.views.hint import HintView
from opd.data.answers import AnswerTask
from opd.data.curriculum import Uniform
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.errors import DataError
from opd.evaluation.metrics import summarise
from opd.models.chat import Chat
from opd.models.language import stop_ids
from opd.models.loading import load
from opd.rollouts.sampler import Prefix, Sampler
from opd.teachers.hints import RulesAuthor
from opd.types import Message, Observation, Prompt, Rollout, Sampling
from support.chat_templates import FORMATS, make_chat_tokenizer
from support.models import make_model
from support.scripted import Scripted

TOOLS = get_task("tools")
MODEL = load("nano/tools-base", key="student")
CHAT = Chat(MODEL.tokenizer)


def sampler(max_new_tokens: int = 64, max_turns: int = 5, temperature: float = 0.0) -> Sampler:
    engine = HFEngine(MODEL)
    return Sampler(
        engine,
        CHAT,
        TOOLS,
        sampling=Sampling(temperature=temperature),
        stop_ids=stop_ids(MODEL),
        max_new_tokens=max_new_tokens,
        max_turns=max_turns,
    )


def greedy(engine: HFEngine, **settings: Any) -> Sampler:
    return Sampler(engine, CHAT, TOOLS, sampling=Sampling(temperature=0), stop_ids=stop_ids(MODEL), **settings)


def rollouts(**settings: float) -> list[Rollout]:
    return sampler(**settings).rollout(TOOLS.prompts("test")[:48], seed=0)  # type: ignore[arg-type]


def test_a_trajectory_is_the_templates_rendering_of_its_conversation() -> None:
    for rollout in rollouts():
        conversation = [*(rollout.prompt.messages or ()), *rollout.transcript]
        text = MODEL.tokenizer.apply_chat_template([dict(m) for m in conversation], tokenize=False)
        assert rollout.prompt_ids + rollout.completion_ids == CHAT.insert_text_ids(text)


def test_the_mask_is_true_on_the_turns_alone_and_logprobs_are_nan_elsewhere() -> None:
    found_insertion = False
    for rollout in rollouts(temperature=1.0):
        inside = {p for span in rollout.turns for p in range(*span)}
        for position, (mask, logprob) in enumerate(zip(rollout.completion_mask, rollout.logprobs, strict=True)):
            assert mask == (position in inside)
            assert math.isnan(logprob) != mask
            found_insertion |= not mask
        assert rollout.turns[-1].stop == len(rollout.completion_ids)
    assert found_insertion


def test_events_stand_at_the_turn_that_caused_them() -> None:
    seen = 0
    for rollout in rollouts():
        for event in rollout.events:
            seen += 1
            assert event.span == rollout.turns[event.turn]
            if event.kind == "unknown_tool":
                span = rollout.completion_ids[event.span.start : event.span.stop]
                assert event.detail["tool"] in CHAT.decode(span)
    assert seen
    figures = summarise(rollouts())
    assert 0.4 <= figures["invalid_call_rate"] <= 0.75


def test_too_long_is_an_event_and_counts_as_wrong() -> None:
    for rollout in rollouts(max_new_tokens=4):
        assert len(rollout.completion_ids) <= 4
        assert rollout.finish == "length"
        assert rollout.events[-1].kind == "too_long"
        assert rollout.reward == 0.0
    cut = [r for r in rollouts(max_turns=1) if r.finish == "turns"]
    assert cut
    assert all(len(r.turns) == 1 and r.reward == 0.0 for r in cut)


@pytest.mark.parametrize(("step", "turns"), [(0, 1), (9, 1), (10, 2), (25, 3), (1000, 3)])
def test_the_turn_limit_grows(step: int, turns: int) -> None:
    engine = HFEngine(MODEL)
    growing = greedy(engine, max_new_tokens=64, max_turns=3, grow_every=10)
    assert max(len(r.turns) for r in growing.rollout(TOOLS.prompts("test")[:16], 0, step)) == turns


def test_without_a_task_there_is_no_reward() -> None:
    model = make_model(0)
    engine = HFEngine(model)
    prompts = [Prompt(id="a", text="b c")] * 3
    plain = Sampler(engine, Chat(model.tokenizer), None, stop_ids=stop_ids(model), max_new_tokens=5).rollout(prompts, 0)
    checked = Sampler(engine, Chat(model.tokenizer), AnswerTask(), stop_ids=stop_ids(model), max_new_tokens=5).rollout(
        prompts, 0
    )
    assert all(r.reward is None and len(r.turns) == 1 for r in plain + checked)
    assert "accuracy" not in summarise(plain)


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    model = make_model(0)
    engine = HFEngine(model)
    tight = Sampler(engine, Chat(model.tokenizer), None, stop_ids=stop_ids(model), max_new_tokens=5, max_length=6)
    with pytest.raises(DataError, match="prompt 'a' has 3 tokens.*exceeds the model's 6"):
        tight.rollout([Prompt(id="a", text="b c d")], 0)


def test_every_prompt_once_per_epoch_and_the_order_is_a_function_of_the_step() -> None:
    prompts = [Prompt(id=str(i), text="a") for i in range(10)]
    order = Uniform(prompts, batch=5, samples=1, seed=3)
    first = [p.id for step in (0, 1) for p in order.step(step)]
    second = [p.id for step in (2, 3) for p in order.step(step)]
    assert sorted(first) == sorted(second) == sorted(p.id for p in prompts)
    assert first != second
    assert [p.id for p in Uniform(prompts, batch=5, samples=1, seed=3).step(3)] == second[5:]
    assert [p.id for p in Uniform(prompts, batch=2, samples=2, seed=3).step(0)] == [
        first[0],
        first[0],
        first[1],
        first[1],
    ]
    with pytest.raises(DataError, match="fewer than one batch"):
        Uniform(prompts, batch=11, samples=1, seed=0)


def test_a_teachers_prefix_is_read_and_not_chosen() -> None:
    """The environment sees the whole turn, and the student answers for its own part alone."""
    engine = HFEngine(MODEL)
    other = HFEngine(load("nano/critic", key="x"))
    prompts = TOOLS.prompts("test")[:12]
    sampler = greedy(engine, max_new_tokens=40, max_turns=1, prefix=Prefix(other, Sampling(temperature=0), tokens=3))
    lengths = set()
    for seed in range(8):
        batch = sampler.rollout(prompts, seed)
        most = max(r.completion_mask.index(True) for r in batch)
        lengths.add(most)
        written = other.generate(
            [r.prompt_ids for r in batch],
            [3] * len(batch),
            sampling=Sampling(temperature=0),
            stop_ids=stop_ids(MODEL),
            seed=seed,
        )
        for rollout, generation in zip(batch, written, strict=True):
            start = rollout.completion_mask.index(True)
            assert rollout.completion_ids[:start] == generation.ids[:start]
            assert all(rollout.completion_mask[start:])
            assert rollout.turns[0] == (0, len(rollout.completion_ids))
            assert rollout.transcript[0]["content"] == CHAT.decode(rollout.completion_ids)
    assert lengths == {0, 1, 2, 3}


def test_a_teacher_plays_the_first_turns_and_leaves_the_last_to_the_student() -> None:
    teacher = HFEngine(load("nano/tools-base", key="x"))
    student = HFEngine(MODEL)
    sampler = greedy(student, max_new_tokens=64, max_turns=4, prefix=Prefix(teacher, turns=2))
    led = set()
    for seed in range(6):
        for rollout in sampler.rollout(TOOLS.prompts("test")[:12], seed):
            own = [all(rollout.completion_mask[p] for p in range(*turn)) for turn in rollout.turns]
            assert own == sorted(own)
            assert own[-1]
            assert not any(rollout.completion_mask[: rollout.turns[own.index(True)].start])
            led.add(own.index(True))
            conversation = [*(rollout.prompt.messages or ()), *rollout.transcript]
            text = MODEL.tokenizer.apply_chat_template([dict(m) for m in conversation], tokenize=False)
            assert rollout.prompt_ids + rollout.completion_ids == CHAT.insert_text_ids(text)
    assert led == {0, 1, 2}
    tight = greedy(student, max_new_tokens=64, max_turns=1, prefix=Prefix(teacher, turns=2))
    assert all(all(r.completion_mask) for r in tight.rollout(TOOLS.prompts("test")[:4], 1))


class Again:
    """Asks for a second turn and remembers what it saw."""

    def prompts(self, split: str) -> list[Prompt]:
        return []

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        assert all(m["content"] == "It is 7." for m in transcript if m["role"] == "assistant")
        return Observation(message={"role": "user", "content": "Sure?"} if len(transcript) == 1 else None)


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_sampled_stop_token_is_never_inserted_again(name: str, *, other: bool) -> None:
    """The second turn's context is the template's rendering, whichever of the stop tokens ended the first turn."""
    chat = Chat(make_chat_tokenizer(name))
    eos = chat.tokenizer.eos_token_id
    said = (*chat.insert_text_ids("It is 7."), *((eos,) if other else chat.turn_end_ids))
    engine, stops = Scripted(said), frozenset({eos, chat.turn_end_ids[-1]})
    asked = ({"role": "user", "content": "3 + 4?"},)
    sampler = Sampler(engine, chat, Again(), stop_ids=stops, max_new_tokens=200, max_turns=2)
    rollout = sampler.rollout([Prompt(id="a", messages=asked)], 0)[0]
    conversation = [*asked, *rollout.transcript[:2]]
    text = chat.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    context, stray = tuple(engine.contexts[1]), other or eos == chat.turn_end_ids[-1]
    if name in ("mistral", "chatml"):  # the template's own turn end is EOS
        assert context == chat.insert_text_ids(text)
    else:
        assert tuple(i for i in context if i != eos) == chat.insert_text_ids(text)
        assert context.count(eos) == int(stray)
    assert [rollout.completion_ids[t.start : t.stop] for t in rollout.turns] == [said, said]
    assert rollout.finish == "stop"


class Calls:
    """Notes the turns it sees, answers with two messages, and says where in the turn the fault is."""

    def __init__(self) -> None:
        self.turns: list[str] = []

    def prompts(self, split: str) -> list[Prompt]:
        return []

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        self.turns.append(transcript[-1]["content"])
        if len(transcript) > 1:
            return Observation(reward=1.0)
        start = transcript[-1]["content"].index("mul")
        return Observation(
            message={"role": "tool", "content": "6"},
            more=({"role": "tool", "content": "7"},),
            events=(("unknown_tool", {"tools": "add"}), ("odd", {})),
            places=((start, start + 3),),
        )


def test_a_task_sees_special_tokens_and_its_events_and_messages_keep_their_places() -> None:
    tokenizer = make_chat_tokenizer("chatml")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    chat = Chat(tokenizer)
    said = (*chat.insert_text_ids("[TOOL_CALLS]mul(2)"), *chat.turn_end_ids)
    task, stops = Calls(), frozenset(chat.turn_end_ids[-1:])
    sampler = Sampler(Scripted(said), chat, task, stop_ids=stops, max_new_tokens=400, max_turns=2)
    rollout = sampler.rollout([Prompt(id="a", messages=({"role": "user", "content": "?"},))], 0)[0]
    assert task.turns == ["[TOOL_CALLS]mul(2)"] * 2
    fault, whole = rollout.events
    assert chat.decode(rollout.completion_ids[fault.span.start : fault.span.stop]) == "mul"
    assert whole.span == rollout.turns[0]
    conversation = [*(rollout.prompt.messages or ()), *rollout.transcript]
    assert [m["content"] for m in conversation] == ["?", "[TOOL_CALLS]mul(2)", "6", "7", "[TOOL_CALLS]mul(2)"]
    text = tokenizer.apply_chat_template([dict(m) for m in conversation], tokenize=False)
    assert chat.decode(rollout.prompt_ids + rollout.completion_ids, skip_special_tokens=False) == text.rstrip()
    view = HintView(RulesAuthor(), chat)
    (turn,) = view.segments([rollout])
    (exact,) = HintView(RulesAuthor(span="fault"), chat).segments([rollout])
    assert (turn.span, exact.span) == (rollout.turns[0], fault.span)
    assert exact.context_ids == turn.context_ids + rollout.completion_ids[: fault.span.start]


@pytest.mark.parametrize(
    ("reaction", "sentence"),
    [
        (
            lambda: 1 / 0,
            r"Broken.step raised ZeroDivisionError: division by zero \(test_sampler.py, line \d+\)",
        ),
        (lambda: {"reward": 1.0}, r"Broken.step returned \{'reward': 1.0\} on prompt 'a'. Fix: return opd.Observation"),
        (
            lambda: Observation(message=cast("Message", "no")),
            r"gave the messages \('no',\), which are no mappings with role and content,",
        ),
        (lambda: Observation(events=(("odd",),)), r"gave the events .* which are no pairs of a kind and a mapping,"),  # type: ignore[arg-type]
    ],
)
def test_a_broken_step_is_one_sentence_that_names_task_and_prompt(reaction: Any, sentence: str) -> None:
    class Broken(Calls):
        def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
            answer: Observation = reaction()
            return answer

    said = (*CHAT.insert_text_ids("call"), *CHAT.turn_end_ids)
    sampler = Sampler(Scripted(said), CHAT, Broken(), stop_ids=stop_ids(MODEL), max_new_tokens=9)
    with pytest.raises(DataError, match=f"task: .*{sentence}"):
        sampler.rollout([Prompt(id="a", messages=({"role": "user", "content": "?"},))], 0)
