"""Generation with transformers: a decode loop with a KV cache in which finished rows make room for waiting ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opd.engines.cache import RowCache
from opd.models.language import LanguageModel, pad
from opd.types import Generation, Sampling

STREAM = 2**40
"""Distance between the seeds of two streams, far above the seeds of a run."""

COMPACT_BELOW = 0.8
"""Finished rows are dropped once fewer than this share of the rows decodes; copying the cache costs about one step."""


def log_probs(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that tokens are drawn from, as float32 log-probabilities [B, V]; -inf where cut off.

    At temperature 0 it is the model's own distribution; ``draw`` takes its mode.
    """
    logits = logits_BV.float()
    if sampling.temperature == 0:
        return logits.log_softmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if sampling.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        # A token stays if those before it do not yet reach top_p; the first always stays.
        beyond = probability.cumsum(-1) - probability >= sampling.top_p
        logits = logits.masked_fill(beyond.scatter(-1, index, beyond), float("-inf"))
    if sampling.min_p > 0:
        least = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < least, float("-inf"))
    return logits.log_softmax(-1)


def draw(log_probs_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Token ids [B]."""
    if sampling.temperature == 0:
        return log_probs_BV.argmax(-1)
    # Inverse of the cumulative distribution, in float64 so that rounding cannot favour a token.
    cumulative = log_probs_BV.exp().cumsum(-1, dtype=torch.float64)
    point = torch.rand(len(cumulative), 1, dtype=torch.float64, device=cumulative.device, generator=generator)
    return torch.searchsorted(cumulative, point * cumulative[:, -1:], right=True)[:, 0]


@dataclass
class _Rows:
    """The rows that decode now. B rows, L cached positions (left-padded), at most N new tokens."""

    index: list[int]
    cache: RowCache
    mask_BL: Tensor
    token_BN: Tensor
    logprob_BN: Tensor
    count_B: Tensor
    budget_B: Tensor
    logits_BV: Tensor

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, without the padding that all of them share."""
        self.index = [self.index[i] for i in rows.tolist()]
        self.cache.keep(rows)
        for name in ("mask_BL", "token_BN", "logprob_BN", "count_B", "budget_B", "logits_BV"):
            setattr(self, name, getattr(self, name)[rows])
        shared = int(self.mask_BL.argmax(1).min()) if len(rows) else 0
        if shared:
            self.mask_BL = self.mask_BL[:, shared:]
            self.cache.drop(shared)

    def join(self, other: _Rows) -> None:
        """Append freshly prefilled rows, padding whichever cache is shorter on the left."""
        width = max(self.mask_BL.shape[1], other.mask_BL.shape[1])
        for rows in (self, other):
            missing = width - rows.mask_BL.shape[1]
            if missing:
                rows.mask_BL = F.pad(rows.mask_BL, (missing, 0))
                rows.cache.pad(missing)
        self.cache.join(other.cache)
        self.index += other.index
        for name in ("mask_BL", "token_BN", "logprob_BN", "count_B", "budget_B", "logits_BV"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))


class HFEngine:
    """Generates with any Hugging Face causal language model in this process; the default engine.

    It reads the live parameters at each call, so a student that trains between calls stays on-policy.

    Args:
        language_model: the model that generates.
        max_rows: rows decoded at once; further contexts wait and join as rows finish.
        stream: of random numbers; another one draws other tokens from the same seed.
    """

    def __init__(self, language_model: LanguageModel, *, max_rows: int = 256, stream: int = 0) -> None:
        self.language_model = language_model
        self.max_rows = max_rows
        self.stream = stream

    reports = True
    """Whether ``generate`` takes ``done``."""

    def sync(self) -> None:
        """Do nothing: ``generate`` reads the live parameters."""

    @torch.inference_mode()
    def generate(
        self,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        sampling: Sampling,
        stop_ids: frozenset[int],
        seed: int,
        done: dict[int, Generation] | None = None,
    ) -> list[Generation]:
        """Continue each context; see ``Engine.generate``. ``done`` gets each generation, by row, when it ends."""
        model, device = self.language_model.model, self.language_model.device
        was_training = model.training
        model.eval()
        generator = torch.Generator(device).manual_seed(seed + self.stream * STREAM)
        stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=device)
        # Longest first: waiting rows are then the shortest, and joining them does not pad the others.
        waiting = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))
        done = {} if done is None else done
        rows: _Rows | None = None
        while waiting or rows is not None:
            if waiting and (rows is None or len(rows.index) <= COMPACT_BELOW * self.max_rows):
                room = self.max_rows - (len(rows.index) if rows else 0)
                admitted, waiting = waiting[:room], waiting[room:]
                new = self._prefill(admitted, contexts, max_new_tokens)
                if rows is None:
                    rows = new
                else:
                    rows.join(new)
            assert rows is not None
            finished = _advance(rows, sampling, generator, stops)
            if finished.any():
                alive = _collect(rows, finished.tolist(), stop_ids, done)
                if not alive:
                    rows = None
                    continue
                if len(alive) < COMPACT_BELOW * len(rows.index):
                    rows.keep(torch.tensor(alive, device=device))
            self._forward(rows)
        model.train(was_training)
        return [done[i] for i in range(len(contexts))]

    def _prefill(self, index: list[int], contexts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> _Rows:
        """Run the contexts of B rows, in one forward pass if the model can read padding."""
        cache = RowCache(self.language_model)
        if cache.recurrent and len({len(contexts[i]) for i in index}) > 1:
            first, *others = (list(same) for _, same in groupby(index, key=lambda i: len(contexts[i])))
            rows = self._prefill(first, contexts, max_new_tokens)
            for same in others:
                rows.join(self._prefill(same, contexts, max_new_tokens))
            return rows
        device = self.language_model.device
        ids, mask = pad([contexts[i] for i in index], left=True, device=device)
        position_ids = (mask.cumsum(1) - 1).clamp_min(0)
        shape = (len(index), max(max_new_tokens))
        return _Rows(
            index=list(index),
            cache=cache,
            mask_BL=mask,
            token_BN=torch.zeros(shape, dtype=torch.int64, device=device),
            logprob_BN=torch.zeros(shape, device=device),
            count_B=torch.zeros(len(index), dtype=torch.int64, device=device),
            budget_B=torch.tensor([max_new_tokens[i] for i in index], device=device),
            logits_BV=self._logits(cache, input_ids=ids, attention_mask=mask, position_ids=position_ids),
        )

    def _forward(self, rows: _Rows) -> None:
        """Feed each row's last token and compute the next logits."""
        column = (rows.count_B - 1).clamp_max(rows.token_BN.shape[1] - 1)[:, None]
        rows.mask_BL = torch.cat([rows.mask_BL, rows.mask_BL.new_ones(len(rows.index), 1)], dim=1)
        rows.logits_BV = self._logits(
            rows.cache,
            input_ids=rows.token_BN.gather(1, column),
            # Without attention nothing hides behind padding, and Mamba takes the mask for that of the new token.
            attention_mask=rows.mask_BL if rows.cache.attends else None,
            position_ids=rows.mask_BL.sum(1, keepdim=True) - 1,
        )

    def _logits(self, cache: RowCache, **inputs: Tensor | None) -> Tensor:
        """The logits after the last position, [B, V]."""
        with self.language_model.precision():
            out: Any = self.language_model.model(
                **inputs, **{cache.argument: cache.cache}, use_cache=True, logits_to_keep=1
            )
        logits_BLV: Tensor = out.logits
        return logits_BLV[:, -1, : self.language_model.rows]


def _advance(rows: _Rows, sampling: Sampling, generator: torch.Generator, stops: Tensor) -> Tensor:
    """Draw one token per row; returns which rows are finished, bool [B]."""
    log_probs_BV = log_probs(rows.logits_BV, sampling)
    token = draw(log_probs_BV, sampling, generator)
    column = rows.count_B.clamp_max(rows.token_BN.shape[1] - 1)[:, None]
    rows.token_BN.scatter_(1, column, token[:, None])
    rows.logprob_BN.scatter_(1, column, log_probs_BV.gather(1, token[:, None]))
    rows.count_B = rows.count_B + 1
    return torch.isin(token, stops) | (rows.count_B >= rows.budget_B)


def _collect(rows: _Rows, finished: list[bool], stop_ids: frozenset[int], done: dict[int, Generation]) -> list[int]:
    """Move finished rows into ``done``; returns the indices of the rows that go on."""
    for row, index in enumerate(rows.index):
        if not finished[row] or index in done:  # finished earlier; it stays in the batch until the next compaction
            continue
        count = int(rows.count_B[row])
        ids = tuple(rows.token_BN[row, :count].tolist())
        done[index] = Generation(ids, tuple(rows.logprob_BN[row, :count].tolist()), stopped=ids[-1] in stop_ids)
    return [row for row, index in enumerate(rows.index) if index not in done]
