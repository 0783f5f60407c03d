"""Several teachers: each rollout is scored by the teachers of its domain, one teacher after the other."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from opd.errors import ConfigError
from opd.models.forward import sort_key
from opd.models.language import LanguageModel
from opd.models.pool import ModelPool
from opd.signals import FullSignal, TeachersSignal
from opd.teachers.local import LocalTeacher
from opd.types import Prompt, Rollout, RolloutSource, Segment

Shares = Mapping[str, Mapping[str, float]]
"""By domain and teacher: the teacher's weight there, above 0."""


class TeachersByDomain:
    """Scores each rollout with the teachers of its domain, grouped by teacher, and keeps last hidden states alone.

    Args:
        pool: the models.
        shares: the weight of each teacher in each domain; not normalised.
        max_tokens: most tokens per forward pass, padding included.
        alternate: if a domain has several teachers, one of them scores each rollout, drawn by share. The draw
            depends on the rollout alone, so a resumed run makes the same one.

    Source: routing by domain and hidden states instead of logits, DeepSeek-V4, arXiv 2606.19348 §5.2; MOPD, arXiv
    2601.02780.
    """

    def __init__(self, pool: ModelPool, shares: Shares, *, max_tokens: int = 16_384, alternate: bool = False) -> None:
        self.pool = pool
        self.shares = shares
        self.max_tokens = max_tokens
        self.alternate = alternate

    def set_shares(self, shares: Shares) -> None:
        """Use other shares from now on; a teacher without a share in a domain no longer scores its rollouts."""
        self.shares = shares

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> TeachersSignal:
        """One signal for each teacher, from one scoring pass over the segments of its own rollouts."""
        shares = [self._shares(rollout) for rollout in rollouts]
        parts, names = [], self.names(rollouts)
        for name in names:
            own = [segment for segment in segments if name in shares[segment.rollout]]
            part = LocalTeacher(self.pool[name], max_tokens=self.max_tokens).score(rollouts, own)
            parts.append(replace(part, head_VD=self.pool.head(name)))
        table_BK = torch.tensor([[share.get(name, 0.0) for name in names] for share in shares])
        return combined(parts, table_BK)

    def names(self, rollouts: Sequence[Rollout]) -> list[str]:
        """The teachers with a share in any of the rollouts, in the order of a signal's parts."""
        return [name for name in self.pool if any(name in self._shares(rollout) for rollout in rollouts)]

    def _shares(self, rollout: Rollout) -> Mapping[str, float]:
        shares = self.shares.get(rollout.prompt.domain, {})
        if not self.alternate or len(shares) < 2:
            return shares
        digest = zlib.crc32(f"{rollout.prompt.id} {rollout.completion_ids}".encode())
        point = digest / 2**32 * sum(shares.values())
        for name, share in shares.items():
            point -= share
            if point < 0:
                return {name: 1.0}
        return {name: 1.0}


def combined(parts: Sequence[FullSignal], share_BK: torch.Tensor) -> TeachersSignal:
    """The signals of K teachers as one, ordered by rollout and position.

    Args:
        parts: each teacher's own signal.
        share_BK: [B, K] each teacher's share in each rollout, not normalised.
    """
    keys = [sort_key(part) for part in parts]
    none = torch.zeros(0, dtype=torch.int64)
    key_T = torch.cat([none, *(k.cpu() for k in keys)]).unique()
    row_TK = torch.full((len(key_T), len(parts)), -1)
    token_T = torch.zeros(len(key_T), dtype=torch.int64)
    for k, (part, key) in enumerate(zip(parts, keys, strict=True)):
        where = torch.searchsorted(key_T, key.cpu())
        row_TK[where, k] = torch.arange(len(part))
        token_T[where] = part.token_T.cpu()
    rollout_T, position_T = key_T // 2**32, key_T % 2**32
    share_TK = share_BK[rollout_T].masked_fill(row_TK < 0, 0.0)
    share_TK = share_TK / share_TK.sum(-1, keepdim=True).clamp_min(1e-12)
    return TeachersSignal(rollout_T, position_T, token_T, row_TK, share_TK, tuple(parts))


class TeacherRollouts:
    """Rollouts by the teacher with the largest share in a prompt's domain, one teacher after the other.

    Args:
        pool: the models.
        shares: as in ``TeachersByDomain``.
        sampler: makes the sampler of one model.
    """

    def __init__(self, pool: ModelPool, shares: Shares, sampler: Callable[[LanguageModel], RolloutSource]) -> None:
        self.pool = pool
        self.shares = shares
        self.sampler = sampler

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        """One rollout per prompt, in order."""
        written: dict[int, Rollout] = {}
        who = [first(self.shares[prompt.domain]) for prompt in prompts]
        for name in self.pool:
            own = [i for i, author in enumerate(who) if author == name]
            if own:
                made = self.sampler(self.pool[name]).rollout([prompts[i] for i in own], seed, step)
                written |= dict(zip(own, made, strict=True))
        return [written[i] for i in range(len(prompts))]


def label_of(shares: Shares, domain: str, name: str) -> str:
    """The suffix of a teacher's metrics on a domain: the domain, and the teacher's name if the domain has several."""
    return f"{domain}/{name}" if len(shares[domain]) > 1 else domain


def first(shares: Mapping[str, float]) -> str:
    """The name with the largest share; of equal ones the first."""
    return max(shares, key=lambda name: shares[name])


def check_covered(shares: Shares, prompts: Sequence[Prompt]) -> None:
    """Check that several teachers cover every prompt's domain.

    Args:
        shares: by domain and name, each teacher's weight.

    Raises:
        ConfigError: no teacher has the domain of a prompt.
    """
    for prompt in prompts:
        if prompt.domain not in shares:
            raise ConfigError(
                f"teacher.models: no teacher has the domain '{prompt.domain}' of prompt '{prompt.id}' (they have "
                f"{', '.join(shares)}). Fix: add it to models.NAME.domains, or set prompts.domain"
            )
