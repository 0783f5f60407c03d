"""The rows that decode now, in a cache that grows with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opd.engines import drawing
from opd.engines.cache import RowCache
from opd.engines.drawing import chosen, log_probs
from opd.models.language import LanguageModel, pad
from opd.types import Sampling


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn in one call of an engine.

    Attributes:
        stop_ids, stops: the ids that end a row; as a tensor, int64.
    """

    sampling: Sampling
    generator: torch.Generator
    stop_ids: frozenset[int]
    stops: Tensor


class Rows(Protocol):
    """Rows that decode together: what the decode loop asks of them. B rows."""

    index: list[int]
    """Each row's context, by its place in the call; random numbers are drawn in this order."""

    def advance(self, draw: Draw) -> list[bool]:
        """Draw one token per row; returns which rows are finished."""
        ...

    def forward(self) -> None:
        """Feed each row's last token."""
        ...

    def written(self, row: int) -> tuple[list[int], list[float]]:
        """The row's tokens so far, and their log-probabilities."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows."""
        ...

    def join(self, other: GrowingRows) -> None:
        """Append freshly prefilled rows."""
        ...


_BY_ROW = ("mask_BL", "token_BN", "logprob_BN", "count_B", "budget_B", "logits_BV")
"""The tensors of ``GrowingRows``, besides its cache."""


@dataclass
class GrowingRows:
    """B rows of one model, L cached positions (left-padded), at most N new tokens."""

    language_model: LanguageModel
    index: list[int]
    cache: RowCache
    mask_BL: Tensor
    token_BN: Tensor
    logprob_BN: Tensor
    count_B: Tensor
    budget_B: Tensor
    logits_BV: Tensor

    @classmethod
    def prefilled(
        cls,
        language_model: LanguageModel,
        index: list[int],
        contexts: list[Sequence[int]],
        budgets: list[int],
        most: int,
    ) -> GrowingRows:
        """Run the contexts of B rows: in one forward pass, or one for each length if the model cannot read padding.

        Args:
            index: each context's place in the call.
            budgets: most new tokens of each.
            most: most new tokens of any row of the call.
        """
        cache = RowCache(language_model)
        if cache.recurrent and len({len(context) for context in contexts}) > 1:
            parts = []
            for _, same in groupby(range(len(index)), key=lambda i: len(contexts[i])):
                some = list(same)
                given = [index[i] for i in some], [contexts[i] for i in some], [budgets[i] for i in some]
                parts.append(cls.prefilled(language_model, *given, most))
            for other in parts[1:]:
                parts[0].join(other)
            return parts[0]
        device = language_model.device
        ids, mask = pad(contexts, left=True, device=device)
        position_ids = (mask.cumsum(1) - 1).clamp_min(0)
        shape = (len(index), most)
        return cls(
            language_model=language_model,
            index=index,
            cache=cache,
            mask_BL=mask,
            token_BN=torch.zeros(shape, dtype=torch.int64, device=device),
            logprob_BN=torch.zeros(shape, device=device),
            count_B=torch.zeros(len(index), dtype=torch.int64, device=device),
            budget_B=torch.tensor(budgets, device=device),
            logits_BV=last_logits(
                language_model, cache.argument, cache.cache, input_ids=ids, attention_mask=mask,
                position_ids=position_ids,
            ),
        )  # fmt: skip

    def advance(self, draw: Draw) -> list[bool]:
        """Draw one token per row; returns which rows are finished."""
        log_probs_BV = log_probs(self.logits_BV, draw.sampling)
        token = chosen(log_probs_BV, drawing.points(len(log_probs_BV), draw.sampling, draw.generator))
        column = self.count_B.clamp_max(self.token_BN.shape[1] - 1)[:, None]
        self.token_BN.scatter_(1, column, token[:, None])
        self.logprob_BN.scatter_(1, column, log_probs_BV.gather(1, token[:, None]))
        self.count_B = self.count_B + 1
        finished: list[bool] = (torch.isin(token, draw.stops) | (self.count_B >= self.budget_B)).tolist()
        return finished

    def forward(self) -> None:
        """Feed each row's last token and compute the next logits."""
        column = (self.count_B - 1).clamp_max(self.token_BN.shape[1] - 1)[:, None]
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(self.index), 1)], dim=1)
        self.logits_BV = last_logits(
            self.language_model,
            self.cache.argument,
            self.cache.cache,
            input_ids=self.token_BN.gather(1, column),
            # Without attention nothing hides behind padding, and Mamba takes the mask for that of the new token.
            attention_mask=self.mask_BL if self.cache.attends else None,
            position_ids=self.mask_BL.sum(1, keepdim=True) - 1,
        )

    def written(self, row: int) -> tuple[list[int], list[float]]:
        """The row's tokens so far, and their log-probabilities."""
        count = int(self.count_B[row])
        return self.token_BN[row, :count].tolist(), self.logprob_BN[row, :count].tolist()

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows, without the padding that all of them share."""
        self.index = [self.index[i] for i in rows]
        kept = torch.tensor(rows, device=self.mask_BL.device)
        self.cache.keep(kept)
        for name in _BY_ROW:
            setattr(self, name, getattr(self, name)[kept])
        shared = int(self.mask_BL.argmax(1).min()) if rows else 0
        if shared:
            self.mask_BL = self.mask_BL[:, shared:]
            self.cache.drop(shared)

    def join(self, other: GrowingRows) -> None:
        """Append freshly prefilled rows, padding whichever cache is shorter on the left."""
        width = max(self.mask_BL.shape[1], other.mask_BL.shape[1])
        for rows in (self, other):
            missing = width - rows.mask_BL.shape[1]
            if missing:
                rows.mask_BL = F.pad(rows.mask_BL, (missing, 0))
                rows.cache.pad(missing)
        self.cache.join(other.cache)
        self.index += other.index
        for name in _BY_ROW:
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))


def last_logits(language_model: LanguageModel, argument: str, cache: Any, **inputs: Any) -> Tensor:
    """The logits after the last position, [B, V]."""
    # The states of the last position lie apart in memory, and a CPU would copy the head for each row.
    head: nn.Module = language_model.model.get_output_embeddings()
    gathered = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    try:
        with language_model.precision():
            out: Any = language_model.model(**inputs, **{argument: cache}, use_cache=True, logits_to_keep=1)
    finally:
        gathered.remove()
    logits_BLV: Tensor = out.logits
    return logits_BLV[:, -1, : language_model.rows]
