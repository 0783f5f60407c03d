"""Generation with transformers: a decode loop with a KV cache in which finished rows make room for waiting ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opd.engines.drawing import log_probs
from opd.engines.fixed import FixedRows
from opd.engines.rows import Draw, GrowingRows, Rows
from opd.engines.weights import RunningWeights
from opd.models.language import LanguageModel
from opd.types import Generation, Sampling

__all__ = ["HFEngine", "log_probs"]

STREAM = 2**40
"""Distance between the seeds of two streams, far above the seeds of a run."""

COMPACT_BELOW = 0.8
"""Finished rows are dropped once fewer than this share of the rows decodes; copying the cache costs about one step."""


class HFEngine:
    """Generates with any Hugging Face causal language model in this process; the default engine.

    It reads the live parameters at each call, so a student that trains between calls stays on-policy.

    Args:
        language_model: the model that generates.
        max_rows: rows decoded at once; further contexts wait and join as rows finish.
        stream: of random numbers; another one draws other tokens from the same seed.
        copied: generate with a copy of the weights in the dtype of matrix products, as ``sync`` finds them.
        fixed: decode in buffers of a fixed size, on a GPU with one CUDA graph a step. The tokens are the same.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        max_rows: int = 256,
        stream: int = 0,
        copied: bool = False,
        fixed: bool = False,
    ) -> None:
        self.language_model = language_model
        self.max_rows = max_rows
        self.stream = stream
        self.weights = RunningWeights(language_model, copied=copied)
        self.fixed = FixedRows(self.weights.running) if fixed else None

    reports = True
    """Whether ``generate`` takes ``done``."""

    def sync(self) -> None:
        """Take over the live parameters, where it generates with a copy."""
        self.weights.refresh()

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
        running, device = self.weights.running, self.language_model.device
        was_training = running.model.training
        running.model.eval()
        stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=device)
        draw = Draw(sampling, torch.Generator(device).manual_seed(seed + self.stream * STREAM), stop_ids, stops)
        # Longest first: waiting rows are then the shortest, and joining them does not pad the others.
        waiting = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))
        most = max(max_new_tokens, default=0)
        longest = max((len(c) + n for c, n in zip(contexts, max_new_tokens, strict=True)), default=0)
        done = {} if done is None else done
        rows: Rows | None = None
        while waiting or rows is not None:
            if waiting and (rows is None or len(rows.index) <= COMPACT_BELOW * self.max_rows):
                room = self.max_rows - (len(rows.index) if rows else 0)
                admitted, waiting = waiting[:room], waiting[room:]
                new = GrowingRows.prefilled(
                    running, admitted, [contexts[i] for i in admitted], [max_new_tokens[i] for i in admitted], most
                )
                if rows is not None:
                    rows.join(new)
                elif self.fixed:
                    number = min(len(contexts), self.max_rows)
                    rows = self.fixed.start(new, number, longest)
                else:
                    rows = new
            assert rows is not None
            finished = rows.advance(draw)
            if any(finished):
                alive = _collect(rows, finished, stop_ids, done)
                if not alive:
                    rows = None
                    continue
                if len(alive) < COMPACT_BELOW * len(rows.index):
                    rows.keep(alive)
            rows.forward()
        running.model.train(was_training)
        return [done[i] for i in range(len(contexts))]


def _collect(rows: Rows, finished: list[bool], stop_ids: frozenset[int], done: dict[int, Generation]) -> list[int]:
    """Move finished rows into ``done``; returns the indices of the rows that go on."""
    for row, index in enumerate(rows.index):
        if not finished[row] or index in done:  # finished earlier; it stays in the batch until the next compaction
            continue
        ids, logprobs = rows.written(row)
        done[index] = Generation(tuple(ids), tuple(logprobs), stopped=ids[-1] in stop_ids)
    return [row for row, index in enumerate(rows.index) if index not in done]
