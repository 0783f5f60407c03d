"""Each position's own loss, as objectives fill it in: weighted, it adds up to what they return."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opd.losses import Support
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


def test_the_largest_advantage_holds_on_both_sides() -> None:
    """With the policy that drew the tokens the loss at each is minus its advantage, cut to the limit."""
    log_p_T = (HIDDEN @ HEAD.T).log_softmax(-1)[torch.arange(T), WHERE[2]]
    advantage_T = torch.tensor([-5.0, -1.5, -0.5, 0.0, 0.5, 1.5, 5.0])
    signal = SampledSignal(*WHERE, log_p_T + advantage_T, log_p_T, torch.zeros(T))
    per_token_T = torch.zeros(T)
    PolicyGradient(max_advantage=1.0)(TokenStates(HIDDEN, HEAD), signal, torch.ones(T), per_token_T)
    assert per_token_T.tolist() == pytest.approx([1.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.0], abs=1e-5)
