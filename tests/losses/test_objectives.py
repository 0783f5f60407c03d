"""Each position's own loss, as objectives fill it in: weighted, it adds up to what they return."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opd.losses import Support, linear_divergence
from opd.losses.cross import Matched
from opd.losses.objectives import (
    CrossEntropy,
    CrossTokenizer,
    DirectEstimate,
    FullVocabulary,
    HiddenStates,
    PolicyGradient,
    SeveralTeachers,
)
from opd.signals import (
    CrossSignal,
    FullSignal,
    HiddenSignal,
    SampledSignal,
    TeachersSignal,
    TokenSignal,
    TokenStates,
    TopKSignal,
)
from opd.types import Objective, Signal

T, V, D = 7, 19, 6
DRAW = torch.Generator().manual_seed(3)
HIDDEN, THEIRS, OTHERS = (torch.randn(T, D, generator=DRAW) for _ in range(3))
HEAD, HEAD_1, HEAD_2 = (torch.randn(V, D, generator=DRAW) for _ in range(3))
LAYERS, LAYERS_1 = (torch.randn(T, 2, D, generator=DRAW) for _ in range(2))
WHERE = torch.zeros(T, dtype=torch.int64), torch.arange(T), torch.randint(V, (T,), generator=DRAW)
LOGPROBS = [torch.randn(T, generator=DRAW) - 2 for _ in range(2)]

FULL = FullSignal(*WHERE, THEIRS, HEAD_1)
SAMPLED = SampledSignal(*WHERE, LOGPROBS[0], LOGPROBS[1], torch.zeros(T))


def teachers() -> TeachersSignal:
    """Both speak at the first three positions, and one alone at the others."""
    row_TK = torch.tensor([[0, 0], [1, 1], [2, 2], [3, -1], [4, -1], [-1, 3], [-1, 4]])
    share_TK = torch.where(row_TK >= 0, torch.tensor([0.3, 0.7]), 0.0)
    share_TK = share_TK / share_TK.sum(1, keepdim=True)
    first = (WHERE[0][:5], WHERE[1][:5], WHERE[2][:5])
    parts = [FullSignal(*first, h[:5], head) for h, head in ((THEIRS, HEAD_1), (OTHERS, HEAD_2))]
    return TeachersSignal(*WHERE, row_TK, share_TK, tuple(parts))


@pytest.mark.parametrize(
    ("objective", "signal"),
    [
        (FullVocabulary(divergence="reverse_kl", chunk_tokens=2), FULL),
        (FullVocabulary(support=Support(k=3, whose="teacher", rest="tail")), FULL),
        (SeveralTeachers(inner=FullVocabulary(), combine="losses"), teachers()),
        (SeveralTeachers(inner=FullVocabulary(), combine="arithmetic"), teachers()),
        (SeveralTeachers(inner=FullVocabulary(), combine="geometric"), teachers()),
        (PolicyGradient(), SAMPLED),
        (DirectEstimate(), SAMPLED),
        (HiddenStates(), HiddenSignal(*WHERE, LAYERS_1)),
        (CrossEntropy(), TokenSignal(*WHERE)),
    ],
)
def test_it_adds_up_and_changes_nothing(objective: object, signal: Signal) -> None:
    assert callable(objective)
    weight_T = torch.rand(T, generator=torch.Generator().manual_seed(0)) + 0.1
    per_token_T = torch.full((T,), torch.nan)
    told = objective(TokenStates(HIDDEN, HEAD, LAYERS), signal, weight_T, per_token_T)
    assert float(told) == pytest.approx(float(weight_T @ per_token_T), rel=1e-5)
    assert torch.equal(told, objective(TokenStates(HIDDEN, HEAD, LAYERS), signal, weight_T))
    alone = torch.eye(T)[4] * 1.0
    assert float(objective(TokenStates(HIDDEN, HEAD, LAYERS), signal, alone)) == pytest.approx(
        float(per_token_T[4]), 1e-4
    )


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_divides_the_logits_of_every_token_loss(temperature: float) -> None:
    """Against the losses written out in float64."""
    logits_TV = (HIDDEN.double() @ HEAD.double().T) / temperature
    log_p_T = logits_TV.log_softmax(-1)[torch.arange(T), WHERE[2]]
    ratio_T = LOGPROBS[0].double() - log_p_T
    states = TokenStates(HIDDEN, HEAD)
    settings: dict[str, Any] = {"temperature": temperature, "chunk_tokens": 3}
    importance_T = (log_p_T - LOGPROBS[1].double()).exp()
    wanted: dict[Objective, Tensor] = {
        CrossEntropy(**settings): -log_p_T,
        DirectEstimate(estimator="k2", **settings): ratio_T.square() / 2,
        DirectEstimate(estimator="k3", **settings): ratio_T.exp() - ratio_T - 1,
        PolicyGradient(**settings): -importance_T * (LOGPROBS[0] - LOGPROBS[1]).double(),
    }
    for objective, wanted_T in wanted.items():
        signal = TokenSignal(*WHERE) if isinstance(objective, CrossEntropy) else SAMPLED
        per_token_T = torch.zeros(T)
        objective(states, signal, torch.ones(T), per_token_T)
        assert per_token_T.tolist() == pytest.approx(wanted_T.tolist(), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_divides_the_logits_of_student_and_teacher(temperature: float) -> None:
    """Forward KL against its definition in float64."""
    log_p_TV = ((HIDDEN.double() @ HEAD.double().T) / temperature).log_softmax(-1)
    log_q_TV = ((THEIRS.double() @ HEAD_1.double().T) / temperature).log_softmax(-1)
    wanted_T = (log_q_TV.exp() * (log_q_TV - log_p_TV)).sum(-1)
    per_token_T = torch.zeros(T)
    objective = FullVocabulary(divergence="forward_kl", temperature=temperature)
    objective(TokenStates(HIDDEN, HEAD), FULL, torch.ones(T), per_token_T)
    assert per_token_T.tolist() == pytest.approx(wanted_T.tolist(), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_divides_the_students_logits_beside_a_stored_top_k(temperature: float) -> None:
    """Forward KL over the stored tokens and the mass of all others, against its definition in float64."""
    log_p_TV, log_q_TV = (
        ((hidden.double() @ head.double().T) / temperature).log_softmax(-1)
        for hidden, head in ((HIDDEN, HEAD), (THEIRS, HEAD_1))
    )
    best = log_q_TV.topk(3)

    def merged(log_TV: Tensor) -> Tensor:
        others_T1 = log_TV.scatter(1, best.indices, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([log_TV.gather(1, best.indices), others_T1], 1)

    p_TK, q_TK = merged(log_p_TV), merged(log_q_TV)
    signal = TopKSignal(*WHERE, LOGPROBS[0], best.indices, best.values.float(), q_TK[:, -1].float())
    per_token_T = torch.zeros(T)
    objective = FullVocabulary(temperature=temperature, support=Support(k=3, whose="teacher", rest="tail"))
    objective(TokenStates(HIDDEN, HEAD), signal, torch.ones(T), per_token_T)
    assert per_token_T.tolist() == pytest.approx((q_TK.exp() * (q_TK - p_TK)).sum(-1).tolist(), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_divides_the_logits_of_a_teacher_with_another_tokenizer(temperature: float) -> None:
    """Groups of one token each, all of them common: the JSD in float64, twice where a text opens."""
    p_TV, q_TV = (
        ((hidden.double() @ head.double().T) / temperature).softmax(-1)
        for hidden, head in ((HIDDEN, HEAD), (THEIRS, HEAD_1))
    )
    m_TV = 0.3 * q_TV + 0.7 * p_TV
    jsd_T = (0.3 * q_TV * (q_TV / m_TV).log() + 0.7 * p_TV * (p_TV / m_TV).log()).sum(-1)
    opens_T, ones = torch.arange(T) == 0, torch.ones(T, dtype=torch.int64)
    groups = (torch.arange(T), ones, opens_T, THEIRS, WHERE[2], ones, torch.zeros(T), HEAD_1)
    every = torch.arange(V)
    per_token_T = torch.zeros(T)
    CrossTokenizer(
        opening=Matched(every, every, weight=2.0, rest=0.0),
        inside=Matched(every, every, weight=1.0, rest=0.0),
        beta=0.3,
        temperature=temperature,
    )(TokenStates(HIDDEN, HEAD), CrossSignal(*WHERE, *groups), torch.ones(T), per_token_T)
    assert per_token_T.tolist() == pytest.approx((jsd_T * (1.0 + opens_T.double())).tolist(), rel=1e-4)


@pytest.mark.parametrize(("size", "differs"), [(1, False), (2, True)])
def test_groups_of_several_tokens_count_by_their_text_or_as_observed(size: int, differs: bool) -> None:
    """Pairs of the student's tokens, beside one token of the teacher's each; the last token stands alone."""
    group_T = torch.arange(T) // size
    size_T = group_T.bincount()[group_T]
    ones = torch.ones(T, dtype=torch.int64)
    groups = (group_T, size_T, torch.zeros(T, dtype=torch.bool), THEIRS, WHERE[2], ones, torch.zeros(T), HEAD_1)
    some = torch.arange(V // 2)
    matched = Matched(some, some, weight=1.0, rest=1.0)
    ways = (CrossTokenizer(opening=matched, inside=matched, pieces=pieces) for pieces in ("text", "observed"))
    text, observed = (losses(way, CrossSignal(*WHERE, *groups)) for way in ways)
    assert (text != observed) == differs
    assert text[-1] == observed[-1]


def losses(objective: Objective, signal: Signal) -> list[float]:
    """The objective's loss at each position."""
    per_token_T = torch.zeros(T)
    objective(TokenStates(HIDDEN, HEAD, LAYERS), signal, torch.ones(T), per_token_T)
    return per_token_T.tolist()


def top_3(log_q_TV: Tensor) -> TopKSignal:
    best = log_q_TV.topk(3)
    rest_T = (1 - best.values.exp().sum(1)).log()
    return TopKSignal(*WHERE, LOGPROBS[0], best.indices, best.values, rest_T)


STUDENT, TEACHER = (HIDDEN, HEAD), (THEIRS, HEAD_1)
TAIL = Support(k=3, whose="teacher", rest="tail")
STORED = top_3((THEIRS @ HEAD_1.T).log_softmax(-1))


@pytest.mark.parametrize("changed", ["beta", "clip", "vocab_size", "support", "divergence"])
def test_every_setting_of_a_divergence_reaches_it(changed: str) -> None:
    other: dict[str, Any] = {"beta": 0.2, "clip": 0.1, "vocab_size": 15, "support": TAIL, "divergence": "reverse_kl"}
    usual: dict[str, Any] = {"divergence": "jsd"}
    settings: dict[str, Any] = {**usual, changed: other[changed]}
    wanted_T = torch.zeros(T)
    linear_divergence(*STUDENT, *TEACHER, weight=torch.ones(T), per_token=wanted_T, **settings)
    found = losses(FullVocabulary(**settings), FULL)
    assert found == pytest.approx(wanted_T.tolist(), rel=1e-5)
    assert found != pytest.approx(losses(FullVocabulary(**usual), FULL), rel=1e-3)


@pytest.mark.parametrize("settings", [{"divergence": "jsd", "beta": 0.2}, {"divergence": "reverse_kl"}])
def test_every_setting_of_a_divergence_reaches_a_stored_top_k(settings: dict[str, Any]) -> None:
    """Over the tail as one more token, which the divergence of whole distributions has too."""
    whole = losses(FullVocabulary(support=TAIL, **settings), FULL)
    assert losses(FullVocabulary(support=TAIL, **settings), STORED) == pytest.approx(whole, rel=1e-3)


def test_later_advantages_count_by_the_discount() -> None:
    """With the policy that drew the tokens the loss at each is minus the sum of what follows in its rollout."""
    log_p_T = (HIDDEN @ HEAD.T).log_softmax(-1)[torch.arange(T), WHERE[2]]
    rollout_T = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    advantage_T = torch.tensor([1.0, 2.0, 4.0, 1.0, 0.0, 2.0, -4.0])
    signal = SampledSignal(rollout_T, *WHERE[1:], log_p_T + advantage_T, log_p_T, torch.zeros(T))
    wanted = [-3.0, -4.0, -4.0, -1.0, 0.0, 0.0, 4.0]
    assert losses(PolicyGradient(discount=0.5), signal) == pytest.approx(wanted, abs=1e-4)


def test_importance_ratios_are_clipped_and_cut() -> None:
    log_p_T = (HIDDEN.double() @ HEAD.double().T).log_softmax(-1)[torch.arange(T), WHERE[2]]
    ratio_T, advantage_T = (log_p_T - LOGPROBS[1]).exp(), (LOGPROBS[0] - LOGPROBS[1]).double()
    assert 0 < (ratio_T < 0.05).sum() < T
    plain_T, clipped_T = ratio_T * advantage_T, ratio_T.clamp(0.05, 1.3) * advantage_T
    assert losses(PolicyGradient(clip=(0.95, 0.3)), SAMPLED) == pytest.approx(
        (-torch.minimum(plain_T, clipped_T)).tolist(), rel=1e-4
    )
    cut = (-ratio_T.clamp_max(0.05) * advantage_T).tolist()
    assert losses(PolicyGradient(max_ratio=0.05), SAMPLED) == pytest.approx(cut, rel=1e-4)


def test_hidden_states_are_compared_by_their_direction_if_asked() -> None:
    ours, theirs = (x.double() / x.double().norm(dim=-1, keepdim=True) for x in (LAYERS, LAYERS_1))
    found = losses(HiddenStates(normalise=True), HiddenSignal(*WHERE, LAYERS_1))
    twice = losses(HiddenStates(normalise=True), HiddenSignal(*WHERE, 2 * LAYERS_1))
    assert found == pytest.approx(twice, rel=1e-4)
    share = torch.tensor(found).double() / (ours - theirs).square().sum(-1).mean(-1)
    assert share.tolist() == pytest.approx([float(share[0])] * T, rel=1e-3)


@pytest.mark.parametrize("combine", ["arithmetic", "geometric"])
def test_two_teachers_are_one_distribution(combine: Any) -> None:
    """Forward KL to the mixture in float64, at the positions that both score."""
    log_p_TV = (HIDDEN.double() @ HEAD.double().T).log_softmax(-1)
    one, two = ((h.double() @ w.double().T).log_softmax(-1) for h, w in ((THEIRS, HEAD_1), (OTHERS, HEAD_2)))
    mixed = (0.3 * one.exp() + 0.7 * two.exp()).log() if combine == "arithmetic" else 0.3 * one + 0.7 * two
    log_q_TV = mixed.log_softmax(-1)
    wanted_T = (log_q_TV.exp() * (log_q_TV - log_p_TV)).sum(-1)
    found = losses(SeveralTeachers(inner=FullVocabulary(), combine=combine), teachers())
    assert found[:3] == pytest.approx(wanted_T[:3].tolist(), rel=1e-4)


def test_the_largest_advantage_holds_on_both_sides() -> None:
    """With the policy that drew the tokens the loss at each is minus its advantage, cut to the limit."""
    log_p_T = (HIDDEN @ HEAD.T).log_softmax(-1)[torch.arange(T), WHERE[2]]
    advantage_T = torch.tensor([-5.0, -1.5, -0.5, 0.0, 0.5, 1.5, 5.0])
    signal = SampledSignal(*WHERE, log_p_T + advantage_T, log_p_T, torch.zeros(T))
    per_token_T = torch.zeros(T)
    PolicyGradient(max_advantage=1.0)(TokenStates(HIDDEN, HEAD), signal, torch.ones(T), per_token_T)
    assert per_token_T.tolist() == pytest.approx([1.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.0], abs=1e-5)
