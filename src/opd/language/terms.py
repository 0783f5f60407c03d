"""The loss of a language run: its terms."""

from __future__ import annotations

import dataclasses

from opd.axes.base import check_pair
from opd.axes.views.plain import PlainView
from opd.errors import ConfigError
from opd.experimental.hardest_tokens import Difficulty
from opd.language.context import LanguageContext
from opd.losses.objectives import CrossEntropy, FullVocabulary
from opd.losses.token_weights import Positions
from opd.teachers.local import Answers
from opd.teachers.views import Among
from opd.types import Objective, Term, View

POLICY_GRADIENT = "policy_gradient"
"""Name of the terms that learn from rewards; ``reward`` is the mean reward."""

EQUAL_REWARDS = (
    "the rewards were equal in every group. Fix: take prompts that some answers get right, or raise "
    "rollout.rollouts_per_prompt"
)
"""Why a run may end without a target from rewards, and what to change."""


GIVEN_REWARDS = (
    "no group had two answers with different rewards: they were equal, or None. Fix: check prompts.reward and its "
    "metrics, such as judge/unparsable, or raise rollout.rollouts_per_prompt"
)
"""The same where functions or judges give the rewards, which may be None."""


def _why_no_advantage(run: LanguageContext) -> str:
    """The likely reason why a whole run has no target from rewards, and what to change."""
    prompts = run.config.prompts
    given = any(source.reward for source in (prompts, *(prompts.mix or ())))
    return GIVEN_REWARDS if given or run.objects.reward else EQUAL_REWARDS


def loss_terms(run: LanguageContext) -> list[Term]:
    """The main term first, then the terms beside it."""
    loss = run.config.loss
    view: View = run.view()
    everything: View = PlainView()
    if loss.sft:  # the reference answers in the batch belong to the supervised term only
        view, everything = Among(view, references=False), Among(everything, references=False)
    terms = _signal_terms(run, view)
    if loss.sft:
        supervised = CrossEntropy(chunk_tokens=loss.chunk_tokens)
        answers = Among(PlainView(), references=True)
        terms.append(Term("sft", "sft", Answers(), answers, supervised, loss.sft))
    if run.config.may_anchor:
        terms.append(_anchor(run, everything))
    if loss.reward:
        teacher, objective = loss.reward.make(run)
        weights = None
        if loss.aggregate != "token":  # loss.token_weights belong to the signal; the kind of mean belongs to both
            longest = run.config.rollout.max_new_tokens
            weights = Positions(mean=loss.aggregate, longest=longest, rows=run.world.rows)
        why, weight = _why_no_advantage(run), loss.reward.weight
        terms.append(Term(POLICY_GRADIENT, "reward", teacher, everything, objective, weight, weights, why))
    return terms


def _signal_terms(run: LanguageContext, view: View) -> list[Term]:
    """The term of ``loss.signal``, and those that read the same teacher."""
    config = run.config
    signal = config.loss.signal
    built = signal.build(run)
    check_pair(built, key=f"loss.signal={signal.type}: build()")
    teacher, objective = built
    weights = _token_weights(run, objective)
    view_config = config.teacher.view
    by_view = f"teacher.view={view_config.type}, and {view_config.if_empty}"
    if_empty = _why_no_advantage(run) if signal.role == "reward" else by_view
    name = POLICY_GRADIENT if signal.role == "reward" else signal.role
    main = Term(name, signal.role, teacher, view, objective, config.loss.weight, weights, if_empty)
    return [main, *signal.more_terms(run, main, weights)]


def _anchor(run: LanguageContext, everything: View) -> Term:
    """The KL to the initial student, on the tokens that a partial view leaves, otherwise on all."""
    where = None if run.config.teacher.view.partial else everything
    # Reverse: it stays bounded where the student gives up a habit of the reference, so the habit can be unlearned.
    pull = FullVocabulary(divergence="reverse_kl", chunk_tokens=run.config.loss.chunk_tokens)
    return Term("anchor", "anchor", run.scorer(run.initial), where, pull, run.config.loss.anchor)


def _token_weights(run: LanguageContext, main: Objective) -> Positions | None:
    """``token_weights``, ``aggregate`` and ``hardest_tokens`` in one; None if all tokens count alike."""
    config, tokenizer = run.config, run.student.tokenizer
    weights, hardest = config.loss.token_weights, config.experimental.hardest_tokens
    skipped = set(tokenizer.all_special_ids) if weights.skip_special else set()
    vocabulary = tokenizer.get_vocab() if weights.skip_tokens else {}
    for token in weights.skip_tokens:
        if token not in vocabulary:
            raise ConfigError(
                f"loss.token_weights.skip_tokens: the student's tokenizer has no token '{token}'. Fix: spell it as the "
                "tokenizer does"
            )
        skipped.add(vocabulary[token])
    if weights == type(weights)() and hardest is None and config.loss.aggregate == "token":
        return None
    positions = Positions(
        skip_ids=frozenset(skipped),
        mean=config.loss.aggregate,
        longest=run.config.rollout.max_new_tokens,
        rows=run.world.rows,
        **weights.model_dump(exclude={"skip_special", "skip_tokens"}),
    )
    if hardest is None:
        return positions
    difficulty = Difficulty(
        student=run.student,
        max_tokens=run.config.teacher.max_tokens,
        objective=main if hardest.by == "divergence" else None,
        temperature=run.config.loss.temperature,
    )
    return dataclasses.replace(positions, difficulty=difficulty, hardest=hardest.share)
