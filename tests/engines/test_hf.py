"""The engine against the model itself: every token and logprob is what a full forward pass gives."""

import random

import pytest
import torch

from opd.engines.hf import HFEngine, log_probs
from opd.models.language import LanguageModel
from opd.types import Sampling
from support.models import make_model


def contexts(count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(4, 31) for _ in range(rng.randrange(1, 30))] for _ in range(count)]


@pytest.mark.parametrize("max_rows", [3, 8, 64])
def test_greedy_tokens_and_logprobs_equal_a_full_forward_pass(student: LanguageModel, max_rows: int) -> None:
    given, budgets = contexts(20), [1 + i % 17 for i in range(20)]
    engine = HFEngine(student, max_rows=max_rows)
    for context, budget, answer in zip(
        given,
        budgets,
        engine.generate(given, budgets, sampling=Sampling(temperature=0), stop_ids=frozenset({2, 5, 9, 13}), seed=0),
        strict=True,
    ):
        assert 1 <= len(answer.ids) <= budget
        assert answer.stopped == (answer.ids[-1] in {2, 5, 9, 13})
        assert answer.stopped or len(answer.ids) == budget
        with torch.no_grad():
            whole = student.model(torch.tensor([[*context, *answer.ids]])).logits[0].log_softmax(-1)
        for k, (token, logprob) in enumerate(zip(answer.ids, answer.logprobs, strict=True)):
            expected = whole[len(context) - 1 + k]
            assert token == int(expected.argmax())
            assert logprob == pytest.approx(float(expected[token]), abs=1e-4)


def test_sampled_logprobs_are_those_of_the_distribution_drawn_from(student: LanguageModel) -> None:
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.9)
    given = contexts(12)
    engine = HFEngine(student, max_rows=5)
    for context, answer in zip(
        given, engine.generate(given, [9] * 12, sampling=sampling, stop_ids=frozenset({2}), seed=3), strict=True
    ):
        with torch.no_grad():
            logits = student.model(torch.tensor([[*context, *answer.ids]])).logits[0]
        expected = log_probs(logits, sampling)
        for k, (token, logprob) in enumerate(zip(answer.ids, answer.logprobs, strict=True)):
            assert logprob == pytest.approx(float(expected[len(context) - 1 + k, token]), abs=1e-4)


def test_same_seed_same_tokens_other_seed_others(student: LanguageModel) -> None:
    engine = HFEngine(student)
    given = contexts(10)
    first = engine.generate(given, [12] * 10, sampling=Sampling(), stop_ids=frozenset({2}), seed=1)
    assert first == engine.generate(given, [12] * 10, sampling=Sampling(), stop_ids=frozenset({2}), seed=1)
    assert first != engine.generate(given, [12] * 10, sampling=Sampling(), stop_ids=frozenset({2}), seed=2)


def test_frequencies_follow_the_distribution(student: LanguageModel) -> None:
    engine = HFEngine(student, max_rows=4096)
    drawn = torch.tensor(
        [
            g.ids[0]
            for g in engine.generate([[7, 8, 9]] * 4096, [1] * 4096, sampling=Sampling(), stop_ids=frozenset(), seed=5)
        ]
    )
    with torch.no_grad():
        expected = student.model(torch.tensor([[7, 8, 9]])).logits[0, -1].softmax(-1)
    seen = torch.bincount(drawn, minlength=len(expected)) / 4096
    error = (expected * (1 - expected) / 4096).sqrt()
    assert ((seen - expected).abs() <= 5 * error + 1e-4).all()


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = log_probs(logits, Sampling(top_p=0.75)).exp()
    assert torch.allclose(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    assert torch.allclose(log_probs(logits, Sampling(top_p=0.01)).exp()[0, 0], torch.tensor(1.0))


def test_top_k() -> None:
    kept = log_probs(torch.tensor([[1.0, 3.0, 2.0]]), Sampling(top_k=2)).exp()
    assert float(kept[0, 0]) == 0
    assert float(kept.sum()) == pytest.approx(1)


def test_min_p_keeps_what_has_a_share_of_the_likeliest() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = log_probs(logits, Sampling(min_p=0.5)).exp()
    assert torch.allclose(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    assert torch.allclose(log_probs(logits, Sampling(min_p=0.05)), logits)
    cut = log_probs(logits, Sampling(min_p=0.5, top_p=0.4)).exp()
    assert torch.allclose(cut, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


def test_training_mode_is_put_back(student: LanguageModel) -> None:
    student.model.train()
    HFEngine(student).generate([[5]], [2], sampling=Sampling(), stop_ids=frozenset({2}), seed=0)
    assert student.model.training


def test_the_model_is_used_as_it_is_at_the_call() -> None:
    model = make_model(0)
    engine = HFEngine(model)
    before = engine.generate([[7, 8]], [8], sampling=Sampling(temperature=0), stop_ids=frozenset(), seed=0)
    with torch.no_grad():
        model.model.model.embed_tokens.weight.copy_(make_model(3).model.model.embed_tokens.weight)
    assert engine.generate([[7, 8]], [8], sampling=Sampling(temperature=0), stop_ids=frozenset(), seed=0) != before


def test_the_head_gets_the_last_states_side_by_side() -> None:
    """A CPU copies the head once for each row of states that lie apart: gigabytes for a real vocabulary."""
    model = make_model(0)
    seen: list[bool] = []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, given, out: seen.append(given[0].is_contiguous()))
    HFEngine(model).generate(contexts(3), [2] * 3, sampling=Sampling(), stop_ids=frozenset(), seed=0)
    hook.remove()
    assert seen == [True, True]
    assert not head._forward_pre_hooks
