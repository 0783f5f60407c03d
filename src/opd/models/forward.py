"""Forward passes over stored tokens, for the student (with gradients) and for every teacher.

Suffixes: T packed student-chosen tokens, B rows, L padded length, D hidden units.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opd.distributed import current, is_divided, release
from opd.errors import AlignmentError
from opd.losses.gpu import sent
from opd.models.language import LanguageModel
from opd.models.packing import lay_out, passes
from opd.models.sharing import read_trees, shares, tree_passes, trees_of
from opd.signals import TokenStates
from opd.types import Rollout, Segment, Signal


class Reading(NamedTuple):
    """One sequence of a forward pass, and the completion positions to take hidden states for."""

    rollout: int
    """Index of the rollout in its batch."""
    ids: tuple[int, ...]
    offset: int
    """Index of completion position 0 in ``ids``; negative if the context is shorter than the history it replaces."""
    wanted: list[int]
    """Completion positions, all chosen by the student."""


def own_reading(rollouts: Sequence[Rollout], index: int, wanted: list[int]) -> Reading:
    """A rollout in its own history, up to the last wanted position."""
    rollout = rollouts[index]
    ids = rollout.prompt_ids + rollout.completion_ids[: max(wanted) + 1]
    return Reading(index, ids, len(rollout.prompt_ids), wanted)


def readings_of(rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> list[Reading]:
    """The sequences of some segments: one each, but one per rollout for all segments in the rollout's own history."""
    readings: list[Reading] = []
    own: dict[int, list[int]] = {}
    for segment in segments:
        rollout = rollouts[segment.rollout]
        start, stop = segment.span
        wanted = [p for p in range(start, stop) if rollout.completion_mask[p]]
        if not wanted:
            continue
        if segment.context_ids == rollout.prompt_ids + rollout.completion_ids[:start]:
            own.setdefault(segment.rollout, []).extend(wanted)
        else:
            ids = segment.context_ids + rollout.completion_ids[start:stop]
            readings.append(Reading(segment.rollout, ids, len(segment.context_ids) - start, wanted))
    return readings + [own_reading(rollouts, index, wanted) for index, wanted in own.items()]


def student_readings(rollouts: Sequence[Rollout]) -> list[Reading]:
    """Every student-chosen token, in one sequence per rollout; a rollout without such a token has none."""
    chosen = [[p for p, mine in enumerate(r.completion_mask) if mine] for r in rollouts]
    return [own_reading(rollouts, index, wanted) for index, wanted in enumerate(chosen) if wanted]


def read(
    language_model: LanguageModel, readings: Sequence[Reading], layers: Sequence[int] = ()
) -> tuple[Signal, TokenStates]:
    """One forward pass over all sequences; see ``read_all``."""
    return next(read_all(language_model, readings, layers=layers))


def read_all(
    language_model: LanguageModel,
    readings: Sequence[Reading],
    *,
    max_tokens: int | None = None,
    layers: Sequence[int] = (),
) -> Iterator[tuple[Signal, TokenStates]]:
    """Forward passes over sequences, longest first: packed, or padded if the model cannot keep packed ones apart.

    The state at a token's left neighbour predicts it. The token's id is taken from the model's input tensor through the
    same indices, so ``align`` compares the tokens that were scored.

    Args:
        max_tokens: most tokens of a pass, padding included; None for one pass. A longer sequence has its own pass.
        layers: blocks whose states to return besides the last hidden states.

    Yields:
        The scored tokens and the states that predict them, both ordered by rollout and position. Gradients flow
        unless the caller turned them off.
    """
    for scored, states in _read_batches(language_model, _batches(language_model, readings, max_tokens), layers):
        yield scored.to(language_model.device), states


Batch = list[list[Reading]]
"""The rows of one forward pass, each of one or several sequences."""


def _batches(language_model: LanguageModel, readings: Sequence[Reading], max_tokens: int | None) -> Iterator[Batch]:
    for rows in passes(language_model, [len(reading.ids) for reading in readings], max_tokens):
        yield [[readings[index] for index in row] for row in rows]


def _read_batches(
    language_model: LanguageModel, batches: Iterable[Batch], layers: Sequence[int]
) -> Iterator[tuple[Signal, TokenStates]]:
    """Forward passes; the scored tokens stay on the CPU, so that a GPU is not waited for."""
    if is_divided(language_model.model):
        yield from _read_divided(language_model, list(batches), layers)
        return
    for rows in batches:
        yield _read_rows(language_model, rows, layers)


def _read_divided(
    language_model: LanguageModel, batches: list[Batch], layers: Sequence[int]
) -> Iterator[tuple[Signal, TokenStates]]:
    """Forward passes of a model whose weights are divided: as many on each rank, with a backward pass after each.

    A rank with fewer batches reads a token that counts nothing. The states are leaves whose gradients go on from here,
    also where no loss has used them: the ranks add the gradients of the same weights.
    """
    number = max(current().gather(len(batches), "forward passes"))
    nothing = [[Reading(0, (0,), 0, [])]]
    for rows in batches + [nothing] * (number - len(batches)):
        where, states = _read_rows(language_model, rows, layers)
        if not torch.is_grad_enabled():
            kept = dataclasses.replace(states, head_VD=states.head_VD.clone())
            release(language_model.model)
            yield where, kept
            continue
        outputs = [t for t in (states.hidden_TD, states.head_VD, states.layers_TKD) if t is not None]
        leaves = [t.detach().requires_grad_(t.requires_grad) for t in outputs]
        yield where, TokenStates(*leaves)
        pairs = [(t, leaf) for t, leaf in zip(outputs, leaves, strict=True) if t.requires_grad]
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for _, leaf in pairs]
        torch.autograd.backward([t for t, _ in pairs], gradients)


def _read_rows(
    language_model: LanguageModel, rows: Sequence[Sequence[Reading]], layers: Sequence[int]
) -> tuple[Signal, TokenStates]:
    """One forward pass; each row holds one or several sequences. The scored tokens stay on the CPU."""
    ids_BL, mask_BL, positions_BL = lay_out(language_model, [[reading.ids for reading in row] for row in rows])
    table = []
    for number, row in enumerate(rows):
        start = 0
        for reading in row:
            first = start + reading.offset
            table += [(reading.rollout, p, number, first + p) for p in reading.wanted]
            start += len(reading.ids)
    columns = torch.tensor(sorted(table), dtype=torch.int64).reshape(-1, 4)
    rollout_T, position_T, row_T, column_T = columns.unbind(1)
    scored = Signal(rollout_T, position_T, ids_BL[row_T, column_T])
    row_T, column_T = sent(columns[:, 2:], language_model.device).unbind(1)
    hidden_BLD, chosen = language_model.layers(ids_BL, mask_BL, layers, positions_BL)
    layers_TKD = torch.stack([states_BLD[row_T, column_T - 1] for states_BLD in chosen], 1) if chosen else None
    hidden_TD = hidden_BLD[row_T, column_T - 1]
    return scored, TokenStates(hidden_TD, language_model.head_VD.to(hidden_TD.dtype), layers_TKD)


def states_of(
    language_model: LanguageModel,
    rollouts: Sequence[Rollout],
    segments: Sequence[Segment],
    *,
    max_tokens: int,
    layers: Sequence[int] = (),
) -> tuple[Signal, TokenStates]:
    """A model's states for every student-chosen token of some segments, detached, ordered by rollout and position.

    Segments that are longer than the model's positions are left out, with a warning: a view's feedback or hints make
    some contexts longer than could be known before the run. So are those with tokens that the model does not share with
    the student. Their tokens have no target.
    """
    room, limit = language_model.max_length, language_model.limit
    known = [s for s in segments if limit is None or max(s.context_ids) < limit]
    if len(known) < len(segments):
        warnings.warn(
            f"segments of teacher.view have tokens that '{language_model.source}' does not share with the student and "
            "are left out. Fix: take a teacher with the same tokenizer, or another view",
            stacklevel=2,
        )
    segments = known
    fitting = [s for s in segments if room is None or len(s.context_ids) + s.span.stop - s.span.start <= room]
    if len(fitting) < len(segments):
        warnings.warn(
            f"segments of teacher.view are longer than the {room} positions of '{language_model.source}' and are left "
            "out. Fix: lower rollout.max_new_tokens, or take a shorter view",
            stacklevel=2,
        )
    return collect(language_model, readings_of(rollouts, fitting), max_tokens=max_tokens, layers=layers)


@torch.no_grad()
def collect(
    language_model: LanguageModel, readings: Sequence[Reading], *, max_tokens: int, layers: Sequence[int] = ()
) -> tuple[Signal, TokenStates]:
    """Forward passes batch by batch, without dropout: the scored tokens and their states, detached and in order.

    Those of a served model are on their way (``Signal.arrived``, ``States.arrived``).
    """
    if language_model.is_served:
        return _asked(language_model, readings, layers)
    model = language_model.model
    was_training = model.training
    model.eval()
    parts = list(_read_shared(language_model, readings, max_tokens, layers))
    model.train(was_training)
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=language_model.device)
        head_VD = language_model.head_VD.detach()
        hidden_TD = head_VD.new_zeros(0, head_VD.shape[1])
        return Signal(none, none, none), TokenStates(hidden_TD, head_VD, hidden_TD[:, None].repeat(1, len(layers), 1))
    where = Signal(*(torch.cat([getattr(w, f.name) for w, _ in parts]) for f in dataclasses.fields(Signal)))
    layers_TKD = torch.cat([s.layers_TKD for _, s in parts if s.layers_TKD is not None]) if layers else None
    states = TokenStates(torch.cat([s.hidden_TD for _, s in parts]), parts[0][1].head_VD, layers_TKD)
    order_T = sort_key(where).argsort()
    return where.take(order_T), states.take(order_T)


def _asked(language_model: Any, readings: Sequence[Reading], layers: Sequence[int]) -> tuple[Signal, TokenStates]:
    """The same from servers: one question for each group of rollouts that follow each other.

    What ``Streaming`` has asked for already is not asked again.
    """
    size = language_model.server.settings.sequences
    groups = [
        list(group) for _, group in groupby(sorted(readings, key=lambda r: r.rollout), lambda r: r.rollout // size)
    ]
    table = [(r.rollout, p, r.ids[r.offset + p]) for group in groups for r in group for p in r.wanted]
    columns = torch.tensor(table, dtype=torch.int64).reshape(-1, 3).unbind(1)
    where = Signal(*columns)
    order_T = sort_key(where).argsort()
    asked = [[(r.ids, [r.offset + p - 1 for p in r.wanted]) for r in group] for group in groups]
    later: Any = language_model.states(asked, order_T, layers)
    head_VD = language_model.head_VD.detach()
    # A server sends the last states or those of blocks, so beside those of blocks the last ones have no units.
    states = TokenStates(torch.empty(len(order_T), 0), head_VD, later) if layers else TokenStates(later, head_VD)
    return where.take(order_T).to(language_model.device), states


def _read_shared(
    language_model: LanguageModel, readings: Sequence[Reading], max_tokens: int, layers: Sequence[int]
) -> Iterator[tuple[Signal, TokenStates]]:
    """Forward passes over sequences, of which those that begin alike share their beginning if the model allows it."""
    sequences = [reading.ids for reading in readings]
    # The ranks of a model whose weights are divided make the same passes, which packed ones alone are counted for.
    together = not is_divided(language_model.model) and shares(language_model)
    trees = trees_of(sequences, max_tokens) if together else []
    inside = {index for tree in trees for index in (tree.trunk, *(branch for branch, _ in tree.branches))}
    alone = [reading for index, reading in enumerate(readings) if index not in inside]
    yield from read_all(language_model, alone, max_tokens=max_tokens, layers=layers)
    for some in tree_passes(sequences, trees, max_tokens):
        read = read_trees(language_model, sequences, some, layers)
        table = []
        for index in [index for tree in some for index in (tree.trunk, *(branch for branch, _ in tree.branches))]:
            reading = readings[index]
            for p in reading.wanted:
                column = reading.offset + p
                table.append((reading.rollout, p, read.place(index, column), read.place(index, column - 1)))
        columns = torch.tensor(sorted(table), dtype=torch.int64, device=language_model.device)
        rollout_T, position_T, token_T, state_T = columns.unbind(1)
        layers_TKD = torch.stack([states_ND[state_T] for states_ND in read.layers], 1) if layers else None
        hidden_TD = read.hidden_ND[state_T]
        states = TokenStates(hidden_TD, language_model.head_VD.to(hidden_TD.dtype), layers_TKD)
        yield Signal(rollout_T, position_T, read.ids_N[token_T]), states


def ended(rollout: Rollout) -> tuple[int, int]:
    """A sort key, turns and tokens: about the order in which the rollouts of a batch end."""
    return len(rollout.turns), len(rollout.completion_ids)


def read_own(
    language_model: LanguageModel,
    rollouts: Sequence[Rollout],
    *,
    size: int | None = None,
    max_tokens: int | None = None,
    layers: Sequence[int] = (),
    own: Callable[[Sequence[Rollout]], Collection[int]] | None = None,
    ahead: int = 0,
) -> Iterator[tuple[Signal, TokenStates]]:
    """Forward passes of the student over its own rollouts, with gradients. The scored tokens stay on the CPU.

    Args:
        size: most rollouts per forward pass; None for any number.
        max_tokens: most tokens per forward pass, padding included; None for any number.
        own: gives the indices of the rollouts that this process reads; None for all.
        ahead: further passes that are made before one is used, while a server's answers are on their way. Rollouts
            that ended first are then read first, as the server was asked about them first.
    """
    readings = student_readings(rollouts)
    if ahead:
        readings.sort(key=lambda reading: ended(rollouts[reading.rollout]))
    if own is not None:
        mine = own(rollouts)
        readings = [reading for reading in readings if reading.rollout in mine]
    size = size or max(len(readings), 1)
    parts = (readings[start : start + size] for start in range(0, len(readings), size))
    batches = (batch for part in parts for batch in _batches(language_model, part, max_tokens))
    made = _read_batches(language_model, batches, layers)
    if is_divided(language_model.model):  # its backward pass has to follow at once
        ahead = 0
    waiting = deque(islice(made, ahead))
    for following in made:
        waiting.append(following)
        yield waiting.popleft()
    yield from waiting


def on_cpu(signal: Signal) -> Signal:
    """The positions and tokens alone, on the CPU."""
    return Signal(signal.rollout_T.cpu(), signal.position_T.cpu(), signal.token_T.cpu())


def sort_key(signal: Signal) -> Tensor:
    """One integer per position that orders by rollout, then by position, int64 [T]."""
    return signal.rollout_T * 2**32 + signal.position_T


def align(rollouts: Sequence[Rollout], student: Signal, teacher: Signal) -> Tensor:
    """Prove that teacher and student scored the same tokens, and find the teacher's rows among the student's.

    It catches a teacher that is one position off, which a check of shapes does not.

    Args:
        rollouts: the batch, for the error message.
        student: the tokens of the student's packed hidden states, ordered.
        teacher: the tokens of a teacher's signal.

    Returns:
        int64 [T]: the student's row of each of the teacher's positions.

    Raises:
        AlignmentError: the student has no such position, or another token there.
    """
    ours, theirs = sort_key(student), sort_key(teacher)
    row = torch.searchsorted(ours, theirs).clamp_max(len(ours) - 1)
    wrong = (ours[row] != theirs) | (student.token_T[row] != teacher.token_T)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        index, position = int(teacher.rollout_T[first]), int(teacher.position_T[first])
        raise AlignmentError(
            f"the teacher scored token {int(teacher.token_T[first])} at position {position} of the rollout of prompt "
            f"'{rollouts[index].prompt.id}', where the student produced {int(student.token_T[row[first]])}. "
            "Fix: correct the context or span of the view's segment"
        )
    return row
