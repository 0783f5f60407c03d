"""Prioritised prompts: those with the most left to teach.

Suffixes: N prompts, B rollouts of a step, T positions of the main term's signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.data.curriculum import check_batch
from opd.errors import DataError
from opd.types import Metrics, Prompt, Rollout, Signal

LEAST = 1e-300
"""Stands for a probability of 0, so that prompts without any are drawn last, in random order."""


@dataclass(frozen=True, kw_only=True)
class Interest:
    """The weights of the priorities that make up a prompt's probability.

    Attributes:
        success: p (1 − p), p its success rate: the mean of its rewards, each at least 0 and at most 1.
        divergence: what the loss has left at its tokens, on the average.
        staleness: steps since it was last seen.
        uniform: the same for all.
        keep: what older evidence about a prompt counts, each time there is newer.

    Source: p (1 − p), arXiv 2502.12272; a mixture with staleness, prioritized level replay, arXiv 2010.03934.
    """

    success: float = 0.0
    divergence: float = 0.0
    staleness: float = 0.0
    uniform: float = 0.0
    keep: float = 0.8


class Adaptive:
    """Prompts by what they still teach, drawn without replacement, with probability

        P_i = Σ_k w_k s_ki / Σ_j s_kj,  weights w_k adding to 1, scores s_k as ``Interest`` names them.

    The success rate is (1 + Σ reward) / (2 + rollouts), older ones counting less, so that a prompt not seen yet has the
    most p (1 − p) there is; its divergence is taken to be the largest seen so far, its staleness all steps made. Where
    no prompt has a score all have the same. Nothing corrects for how often a prompt is drawn: the loss is the mean over
    what was drawn, and that is the purpose. Given what is remembered a pure function of seed and step.

    Args:
        prompts: at least one batch of them, each with an id of its own.
        batch, samples, seed: as for ``Uniform``.
        interest: the weights; one of them above 0.

    Raises:
        DataError: fewer prompts than a batch, or two of one id.

    Source: tests/rollout/test_curriculum.py. Not for prompts that are too many to come back within a run: what is
    learned about a prompt serves that prompt alone.
    """

    def __init__(self, prompts: Sequence[Prompt], *, batch: int, samples: int, seed: int, interest: Interest) -> None:
        check_batch(prompts, batch)
        self.number: dict[str, int] = {}
        for number, prompt in enumerate(prompts):
            if self.number.setdefault(prompt.id, number) != number:
                raise DataError(
                    f"prompts: two prompts have the id '{prompt.id}', and experimental.curriculum tells prompts apart "
                    "by their id. Fix: give each its own 'id', or leave experimental.curriculum out"
                )
        self.prompts = prompts
        self.batch = batch
        self.samples = samples
        self.seed = seed
        self.interest = interest
        zero_N = torch.zeros(len(prompts), dtype=torch.float64)
        self.last_N = torch.full((len(prompts),), -1, dtype=torch.int64)
        """Step at which a prompt was last seen; −1 for never."""
        self.won_N, self.tried_N = zero_N.clone(), zero_N.clone()
        """Rewards of its rollouts, and how many there were, older ones counting less."""
        self.diverged_N, self.measured_N = zero_N.clone(), zero_N.clone()
        """Mean losses of its tokens at each visit, and how many visits had one, older ones counting less."""

    def step(self, step: int) -> list[Prompt]:
        """The prompts of one step, ``batch * samples`` of them; repeats stand next to each other.

        The smallest of exponential draws of rates P_i, which is drawing one after the other without replacement.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        drawn_N = torch.rand(len(self.prompts), dtype=torch.float64, generator=generator)
        wait_N = -torch.log1p(-drawn_N) / self.probabilities(step).clamp_min(LEAST)
        chosen = wait_N.topk(self.batch, largest=False).indices.tolist()
        return [self.prompts[n] for n in chosen for _ in range(self.samples)]

    def probabilities(self, step: int) -> Tensor:
        """Of each prompt to be drawn first, float64 [N]."""
        mixed_N = torch.zeros_like(self.won_N)
        for name, score_N in self._scores(step).items():
            total, uniform_N = score_N.sum(), torch.full_like(score_N, 1 / len(score_N))
            mixed_N += getattr(self.interest, name) * (score_N / total if total > 0 else uniform_N)
        return mixed_N / mixed_N.sum()

    @property
    def rates(self) -> Tensor:
        """Success rates by Laplace's rule of succession, float64 [N]; 1/2 where nothing is known."""
        return (self.won_N + 1) / (self.tried_N + 2)

    def learn(self, step: int, rollouts: Sequence[Rollout], signal: Signal, loss_T: Tensor) -> Metrics:
        """Remember the student's own rollouts of a step; what others wrote only counts as seen.

        Args:
            signal: the main term's; its positions without a finite loss are left out.
            loss_T: float32 [T], the loss at each of them.

        Returns:
            ``curriculum/seen``: prompts seen so far. ``curriculum/effective``: 1 / Σ P², how many equally likely
            prompts would be as mixed as those this step drew from. ``curriculum/success``: mean success rate of the
            prompts drawn, as it was known before, where there are rewards.
        """
        number_B = torch.tensor([self.number[r.prompt.id] for r in rollouts], dtype=torch.int64)
        seen = number_B.unique()
        figures = {"curriculum/effective": 1 / float(self.probabilities(step).square().sum())}
        own_B = torch.tensor([r.source == "student" for r in rollouts])
        if any(r.reward is not None for r in rollouts):
            figures["curriculum/success"] = float(self.rates[seen].mean())
        reward_B = torch.tensor([r.reward or 0.0 for r in rollouts], dtype=torch.float64).clamp(0, 1)
        rewarded_B = own_B & torch.tensor([r.reward is not None for r in rollouts])
        self._note(self.won_N, self.tried_N, self._sums(number_B, rewarded_B, reward_B))
        self._note(self.diverged_N, self.measured_N, self._losses(number_B, own_B, signal, loss_T))
        self.last_N[seen] = step
        return {"curriculum/seen": float((self.last_N >= 0).sum()), **figures}

    def tensors(self) -> dict[str, Tensor]:
        """The memory, by name."""
        return {name: getattr(self, f"{name}_N") for name in ("last", "won", "tried", "diverged", "measured")}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a memory.

        Raises:
            ValueError: it is of another number of prompts.
        """
        for name, own_N in self.tensors().items():
            if tensors[name].shape != own_N.shape:
                raise ValueError(
                    f"the checkpoint's curriculum has {len(tensors[name])} prompts, the run has {len(own_N)}"
                )
            own_N.copy_(tensors[name])

    def _scores(self, step: int) -> dict[str, Tensor]:
        """The priorities of each prompt, float64 [N] ≥ 0, by the weight's name."""
        rate_N, known_N = self.rates, self.measured_N > 0
        left_N = (self.diverged_N / self.measured_N.clamp_min(LEAST)).clamp_min(0)
        most = left_N.max() if bool(known_N.any()) else torch.ones_like(left_N[0])
        return {
            "success": (rate_N * (1 - rate_N)).clamp_min(0),
            "divergence": torch.where(known_N, left_N, most),
            "staleness": (step - self.last_N).double(),
            "uniform": torch.ones_like(rate_N),
        }

    def _losses(self, number_B: Tensor, own_B: Tensor, signal: Signal, loss_T: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of each prompt's tokens, and whether there is one: 0 where no teacher gave a signal."""
        row_T, loss_T = signal.rollout_T.cpu(), loss_T.double().cpu()
        mine_T, number_T = own_B[row_T], number_B[row_T]
        finite_T = mine_T & loss_T.isfinite()
        sum_N, finite_N = self._sums(number_T, finite_T, loss_T)
        any_N = self._sums(number_T, mine_T, loss_T)[1]
        rolled_N = self._sums(number_B, own_B, own_B.double())[1]
        there_N = (rolled_N > 0) & ((any_N == 0) | (finite_N > 0))
        return sum_N / finite_N.clamp_min(1), there_N.double()

    def _sums(self, number: Tensor, counts: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """By prompt: the sum of the values that count, and how many these are, float64 [N]."""
        zero_N = torch.zeros_like(self.won_N)
        number, value = number[counts], value[counts]
        return zero_N.index_add(0, number, value), zero_N.index_add(0, number, torch.ones_like(value))

    def _note(self, total_N: Tensor, count_N: Tensor, new: tuple[Tensor, Tensor]) -> None:
        """Add to a running mean where there is something new."""
        sum_N, number_N = new
        kept_N = torch.where(number_N > 0, self.interest.keep, torch.ones_like(number_N))
        total_N.mul_(kept_N).add_(sum_N)
        count_N.mul_(kept_N).add_(number_N)
