"""Two models with different vocabularies, compared over stretches of text that both of them read as whole tokens.

Such a stretch is a group: one or more tokens of the student's, one or more of the teacher's, the same text. Each side
has one measure over its own vocabulary for a group, the distribution at the group's first token times the
probabilities of the tokens that really followed in it:

    p_i = P(i) · P(y₂) ⋯ P(yₙ)      q_j likewise

Tokens that both vocabularies have are compared one by one, the others by size alone:

    D = a Σ_{i matched} jsd_β(p_i, q_i) + b Σ_k |p₍ₖ₎ − q₍ₖ₎|,   p₍ₖ₎ the k-th largest unmatched, 0 beyond the last

In a group of several tokens only the entry of its own first token is the probability of a text that both sides know;
the other entries are those of texts cut short. So such a group can also be measured by its text alone, against
everything else (``by_text_G``):

    D = (a + b) (jsd_β(p, q) + jsd_β(1 − p, 1 − q)),   p, q the probabilities of the group's text

p and q do not sum to 1 in a group of several tokens, nor over the matched tokens. The JSD is still not negative and
0 only at equality, because both of its terms have the same mixture β q + (1 − β) p.

Suffixes: T positions, G groups, R the student's later tokens of groups, N groups of a chunk, B rows of a block,
V student's vocabulary, W teacher's, M matched tokens, U unmatched, D student's hidden units, E teacher's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.errors import OpdError
from opd.losses.chunked import HeadProduct, chunked_loss, log_softmax, make_plan
from opd.losses.divergences import check_divergence
from opd.losses.full_vocab import linear_token_loss, token_logprobs
from opd.losses.plan import RowLoss


@dataclass(frozen=True, slots=True)
class Matched:
    """The tokens that two vocabularies have in common, and what they and the others weigh.

    Attributes:
        student_M, teacher_M: int64, the same tokens' ids on both sides; no id twice.
        weight: of the matched tokens' JSD, a ≥ 0.
        rest: of the unmatched tokens' distance, b ≥ 0.
    """

    student_M: Tensor
    teacher_M: Tensor
    weight: float
    rest: float


@dataclass(frozen=True, slots=True)
class Groups:
    """One side's reading of G groups.

    Attributes:
        hidden: [G, D] the states that predict each group's first token.
        head: [V, D] output head of the same dtype.
        token: int64 [G], each group's first token.
    """

    hidden: Tensor
    head: Tensor
    token: Tensor


def cross_divergence(
    student: Groups,
    teacher: Groups,
    *,
    later_hidden_RD: Tensor,
    later_token_R: Tensor,
    later_group_R: Tensor,
    teacher_rest_G: Tensor,
    by_text_G: Tensor,
    matched: Matched,
    weight_G: Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk_groups: int | None = None,
    per_group: Tensor | None = None,
) -> Tensor:
    """Weighted sum over groups of the hybrid distance, Σ_g w_g D_g.

    No [G, V] tensor is ever stored: a chunk's logits and their gradients are made and forgotten. The later tokens'
    probabilities are needed before a chunk's gradient is known, so their logits are made twice.

    Args:
        student: gradient flows to both tensors.
        teacher: detached.
        later_hidden_RD: [R, D] the student's states that predict the later tokens of groups; gradient flows.
        later_token_R: int64 [R], those tokens.
        later_group_R: int64 [R], which group, 0 to G − 1.
        teacher_rest_G: float32 [G], nats: the teacher's log-probability of its own later tokens, 0 without any.
        by_text_G: bool [G], the groups that count by the probability of their text alone.
        matched: the common vocabulary.
        weight_G: [G] finite and ≥ 0, detached.
        beta: of the JSD, in (0, 1): β KL(q ‖ m) + (1 − β) KL(p ‖ m), m = β q + (1 − β) p.
        temperature: divides the logits of both models.
        chunk_groups: groups whose logits exist at one time.
        per_group: float32 [G], overwritten with D_g, NaN where the weight is 0; for logging, detached.

    Returns:
        float32 [], nats and probability.

    Raises:
        OpdError: shapes do not fit.

    Source: GOLD (Hugging Face TRL, experimental); the sorted distance, ULD, arXiv 2402.12030.
    tests/fidelity/test_cross.py. Not for models that share a vocabulary: there every token has its own target.
    """
    num_groups = len(student.hidden)
    if not len(teacher.hidden) == len(teacher_rest_G) == len(weight_G) == num_groups:
        raise OpdError(
            f"the student has {num_groups} groups, the teacher {len(teacher.hidden)} with {len(teacher_rest_G)} rests, "
            f"and there are {len(weight_G)} weights"
        )
    later_weight_R = weight_G.detach()[later_group_R]
    rest_G = _rest(later_hidden_RD, student.head, later_token_R, later_group_R, num_groups, temperature)
    slope_G = torch.zeros_like(rest_G)
    vocab = max(len(student.head), len(teacher.head))
    plan = make_plan(weight_G, vocab, temperature, chunk_groups, hidden_TD=student.hidden)
    plan = dataclasses.replace(plan, vocab=len(student.head))
    teacher_product = HeadProduct(teacher.head, dataclasses.replace(plan, vocab=len(teacher.head)))
    compare = _Comparison(matched, len(student.head), len(teacher.head), beta)

    def target(chunk: slice) -> RowLoss:
        kept_N = plan.kept_N[chunk]
        teacher_logits_NW = teacher_product(teacher.hidden.detach()[kept_N])

        def rows_loss(rows: slice, log_p_BV: Tensor, p_BV: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
            groups_B = kept_N[rows]
            log_p_BV = log_p_BV + rest_G[groups_B, None]
            log_q_BW = log_softmax(teacher_logits_NW[rows])[0] + teacher_rest_G[groups_B, None]
            tokens = student.token[groups_B], teacher.token[groups_B]
            loss_B, make_slope = compare(log_p_BV, log_q_BW, *tokens, by_text_G[groups_B])

            def slope() -> Tensor:
                slope_BV = make_slope()
                slope_G[groups_B] = slope_BV.sum(-1)
                return slope_BV

            return loss_B, slope

        return rows_loss

    loss = chunked_loss(student.hidden, student.head, plan, target, per_group)
    if not len(later_token_R) or not loss.requires_grad:
        return loss
    # A later token's log-probability stands in log p of every token of its group, so its slope is the sum of theirs.
    carried = linear_token_loss(
        later_hidden_RD,
        student.head,
        later_token_R,
        lambda rows_B, log_p_B: (torch.zeros_like(log_p_B), slope_G[later_group_R[rows_B]]),
        weight=later_weight_R,
        temperature=temperature,
    )
    return loss + carried


def _rest(
    hidden_RD: Tensor, head_VD: Tensor, token_R: Tensor, group_R: Tensor, num_groups: int, temperature: float
) -> Tensor:
    """The log-probability of each group's later tokens together, float32 [G], 0 where there are none."""
    logprobs_R = token_logprobs(hidden_RD.detach(), head_VD.detach(), token_R, temperature)
    return logprobs_R.new_zeros(num_groups).index_add_(0, group_R, logprobs_R)


class _Comparison:
    """The distance of two measures over two vocabularies, and its slope p · ∂D/∂p; a is the weight of the matched."""

    def __init__(self, matched: Matched, num_student: int, num_teacher: int, beta: float) -> None:
        self.matched = matched
        self.unmatched_U = _others(matched.student_M, num_student)
        self.teacher_unmatched = _others(matched.teacher_M, num_teacher)
        self.beta = beta
        self.jsd = check_divergence("jsd", beta=beta)

    def __call__(
        self, log_p_BV: Tensor, log_q_BW: Tensor, student_token_B: Tensor, teacher_token_B: Tensor, by_text_B: Tensor
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        whole_B, whole_slope = self._by_vocabulary(log_p_BV, log_q_BW)
        if not by_text_B.any():
            return whole_B, whole_slope
        ids_B1 = student_token_B[:, None]
        text_B1, text_slope_B1 = self._by_text(log_p_BV.gather(1, ids_B1), log_q_BW.gather(1, teacher_token_B[:, None]))

        def slope() -> Tensor:
            alone_BV = torch.zeros_like(log_p_BV).scatter_(1, ids_B1, text_slope_B1)
            return torch.where(by_text_B[:, None], alone_BV, whole_slope())

        return torch.where(by_text_B, text_B1[:, 0], whole_B), slope

    def _by_text(self, log_p_B1: Tensor, log_q_B1: Tensor) -> tuple[Tensor, Tensor]:
        """The distance of two probabilities of one text, and its derivative by log p."""
        p, q = log_p_B1.exp(), log_q_B1.exp()
        other_p, other_q = ((1 - x).clamp_min(torch.finfo(x.dtype).tiny) for x in (p, q))
        this = (log_p_B1, log_q_B1, p, q, self.beta)
        others = (other_p.log(), other_q.log(), other_p, other_q, self.beta)
        weight = self.matched.weight + self.matched.rest
        slope_B1 = self.jsd.slope(*this) - self.jsd.slope(*others) / other_p * p
        return weight * (self.jsd.density(*this) + self.jsd.density(*others)), weight * slope_B1

    def _by_vocabulary(self, log_p_BV: Tensor, log_q_BW: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        both_BM = log_p_BV[:, self.matched.student_M], log_q_BW[:, self.matched.teacher_M]
        both = (*both_BM, both_BM[0].exp(), both_BM[1].exp(), self.beta)
        p_BU, order_BU = log_p_BV[:, self.unmatched_U].exp().sort(-1, descending=True)
        q_BU = log_q_BW[:, self.teacher_unmatched].exp().sort(-1, descending=True).values
        apart_BU = _padded(p_BU, q_BU.shape[-1]) - _padded(q_BU, p_BU.shape[-1])
        matched_B = self.jsd.density(*both).sum(-1)
        loss_B = self.matched.weight * matched_B + self.matched.rest * apart_BU.abs().sum(-1)

        def slope() -> Tensor:
            slope_BV = torch.zeros_like(log_p_BV)
            slope_BV[:, self.matched.student_M] = self.matched.weight * self.jsd.slope(*both)
            sorted_BU = self.matched.rest * p_BU * apart_BU[:, : p_BU.shape[-1]].sign()
            slope_BV[:, self.unmatched_U] = torch.empty_like(p_BU).scatter_(-1, order_BU, sorted_BU)
            return slope_BV

        return loss_B, slope


def _others(ids_M: Tensor, size: int) -> Tensor:
    """The ids below ``size`` that are not among the given ones, ascending."""
    free = torch.ones(size, dtype=torch.bool, device=ids_M.device)
    free[ids_M] = False
    return free.nonzero()[:, 0]


def _padded(x_BU: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x_BU, (0, max(width - x_BU.shape[-1], 0)))
