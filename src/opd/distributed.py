"""One run in several processes, its ranks, which torchrun starts. The only importer of ``torch.distributed``.

Every rank runs the same loop over the same rollouts, so all decisions are the same everywhere. Divided is the work that
counts: each rank generates the rollouts of its share of the prompts and reads the tokens of its share of the rollouts.
One process is a ``World`` of one rank, which divides nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from opd.errors import ConfigError, OpdError, RankError
from opd.types import Hint, HintAuthor, Prompt, Rollout, RolloutSource, Scored, Segment, Signal, Term

TIMEOUT = "OPD_RANK_TIMEOUT"
"""Environment variable: seconds that a rank waits for the others; by default ``WAITS_S``."""

WAITS_S, DEAD_S, BEAT_S = 1800.0, 20.0, 1.0
"""Seconds: the default of ``OPD_RANK_TIMEOUT``; without a sign of life until a rank is dead; between two signs."""

GONE = "rank {rank} has died or cannot be reached"

BUCKET = 2**24
"""Numbers of gradients that are added at a time."""


class World:
    """The ranks of a run. This one is a single process: all of the work is its own."""

    rank = 0
    size = 1

    def own(self, rollouts: Sequence[Rollout]) -> Collection[int]:
        """Indices of the rollouts whose tokens this rank reads."""
        return range(len(rollouts))

    def score(self, term: Term, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> Signal:
        """The term's signal about this rank's rollouts."""
        return term.teacher.score(rollouts, segments)

    def shared(self, source: RolloutSource) -> RolloutSource:
        """A source whose prompts are divided among the ranks; every rank gets the rollouts of all."""
        return source

    def authors(self, author: HintAuthor) -> HintAuthor:
        """A hint author whose rollouts are divided among the ranks; every rank gets the hints of all."""
        return author

    def gather(self, value: Any, what: str) -> list[Any]:
        """The value of every rank, by rank.

        Args:
            what: of the exchange, for the sentence about a rank that does not take part.
        """
        return [value]

    def first(self, make: Callable[[], Any], what: str) -> Any:
        """What ``make`` returns on rank 0; no other rank calls it."""
        return make()

    def rows(self, values: Tensor) -> Tensor:
        """The rows of all ranks, [N, ...], by rank."""
        return values

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks."""
        return value

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """The sum over ranks of each value."""
        return values

    def losses(self, scored: Scored) -> tuple[Signal, Tensor]:
        """The positions of the whole batch with a term's loss there, ordered."""
        return scored.signal, scored.loss_T

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add the gradients of all ranks."""

    def weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The whole weights of a model on rank 0, in memory of the CPU; None if they are not divided."""
        return None

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on rank 0 in place of divided ones."""
        return tensors

    def save(self, write: Callable[..., None], model: nn.Module, folder: Path) -> None:
        """Let rank 0 write a model; ``write`` gets the whole weights as ``state`` if they are divided."""
        write(folder)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Stop all ranks with one sentence if one of them stops."""
        yield


class Ranks(World):
    """A run of several processes.

    Args:
        store: small texts that every rank can read: who is where, who is alive, why a rank stopped.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self.rank = rank
        self.size = size
        self.timeout = timeout
        self.runs, self.calls = 0, 0
        self.outer, self.store = store, store

    # The work

    def own(self, rollouts: Sequence[Rollout]) -> Collection[int]:
        """Longest first, each rollout goes to the rank with the fewest tokens so far; the same on every rank."""
        lengths = [len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in rollouts]
        tokens = [0] * self.size
        mine = set()
        for index in sorted(range(len(rollouts)), key=lambda index: -lengths[index]):
            rank = tokens.index(min(tokens))
            tokens[rank] += lengths[index]
            if rank == self.rank:
                mine.add(index)
        return mine

    def score(self, term: Term, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> Signal:
        """Only this rank's rollouts are read; rewards are compared among all of them, which reads nothing."""
        mine = self.own(rollouts)
        asked = segments if term.role == "reward" else [s for s in segments if s.rollout in mine]
        signal = term.teacher.score(rollouts, asked)
        chosen = torch.tensor(sorted(mine), dtype=torch.int64, device=signal.rollout_T.device)
        return signal.take(torch.isin(signal.rollout_T, chosen))

    def shared(self, source: RolloutSource) -> RolloutSource:
        """See ``World.shared``."""
        return _Shared(source, self)

    def authors(self, author: HintAuthor) -> HintAuthor:
        """See ``World.authors``."""
        return _SharedAuthor(author, self)

    # Exchange

    def gather(self, value: Any, what: str) -> list[Any]:
        """See ``World.gather``; every rank has to call it, as often as the others."""
        from torch import distributed

        self._enter(what)
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def first(self, make: Callable[[], Any], what: str) -> Any:
        """See ``World.first``."""
        return self.gather(make() if self.rank == 0 else None, what)[0]

    def rows(self, values: Tensor) -> Tensor:
        """See ``World.rows``."""
        return torch.cat(self.gather(values.detach().cpu(), "values of single tokens")).to(values.device)

    def total(self, value: Tensor) -> Tensor:
        """See ``World.total``."""
        return self.rows(value[None]).sum(0).to(value.dtype)

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """See ``World.sums``."""
        found = self.gather(values, "sums of the losses")
        return {name: sum(each[name] for each in found) for name in values}

    def losses(self, scored: Scored) -> tuple[Signal, Tensor]:
        """See ``World.losses``."""
        signal = scored.signal
        place = torch.stack([signal.rollout_T, signal.position_T, signal.token_T], 1)
        rollout_T, position_T, token_T = self.rows(place).unbind(1)
        order_T = (rollout_T * 2**32 + position_T).argsort()
        whole = Signal(rollout_T, position_T, token_T).take(order_T)
        return whole, self.rows(scored.loss_T)[order_T]

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """See ``World.add_gradients``. A parameter without a gradient on any rank keeps none."""
        trained = list(parameters)
        there = self.gather([p.grad is not None for p in trained], "gradients")
        for parameter, any_rank in zip(trained, map(any, zip(*there, strict=True)), strict=True):
            if any_rank and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in trained if p.grad is not None]):
            self._add(bucket)

    def _add(self, tensors: Sequence[Tensor]) -> None:
        from torch import distributed

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def save(self, write: Callable[..., None], model: nn.Module, folder: Path) -> None:
        """See ``World.save``."""
        state = self.weights(model)
        self.first(lambda: write(folder) if state is None else write(folder, state=state), "saving")

    # Failures

    @contextmanager
    def together(self) -> Iterator[None]:
        """See ``World.together``: rank 0 raises the sentence, and the others a ``RankError``."""
        from torch.distributed.distributed_c10d import PrefixStore

        self.runs += 1
        self.store = PrefixStore(f"opd/{self.runs}", self.outer)
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(self.store.clone(), ended), daemon=True)
        watch.start()
        try:
            with _terminated():
                yield
                self.gather(None, "end of the run")
        except (Exception, _Terminated) as error:
            raise self._one_sentence(error) from error
        finally:
            ended.set()
            watch.join()

    def _one_sentence(self, error: BaseException) -> BaseException:
        """Tell the other ranks why this one stops, or find out which other rank is the cause."""
        if isinstance(error, RankError):
            return error
        if isinstance(error, _Terminated) or (not isinstance(error, OpdError) and _of_exchange(error)):
            found = self._cause(error)
            if not found:
                return error
            _tell(self.store, found)
            if self.rank == 0:
                return OpdError(found)
            self._say(found)
            return RankError(found)
        said = str(error) if isinstance(error, OpdError) else f"{type(error).__name__}: {error}"
        _tell(self.store, f"rank {self.rank}: {said}")
        return error if self.rank == 0 or not isinstance(error, OpdError) else RankError(str(error))

    def _cause(self, error: BaseException) -> str:
        """The sentence about a rank that failed, died, or is late, after an exchange has failed or a signal has come.

        Empty if it was a signal and nothing is wrong with any rank.
        """
        try:
            before, until = self._beats(self.store), time.monotonic() + DEAD_S / 2
            while time.monotonic() < until:
                time.sleep(BEAT_S)
                if self.store.check(["failed"]):
                    return str(self.store.get("failed").decode())
            silent = [r for r, beat in enumerate(self._beats(self.store)) if beat == before[r] and r != self.rank]
            if silent:
                return self._dead(self.store, silent[0])
            return "" if isinstance(error, _Terminated) else self._late()
        except RuntimeError as lost:
            return _gone(0, str(lost).splitlines()[0])

    def _late(self) -> str:
        """The sentence about the ranks that did not come to an exchange."""
        places = [json.loads(self.store.get(f"at/{rank}")) for rank in range(self.size)]
        rank = min(range(self.size), key=lambda rank: places[rank][0])
        return (
            f"rank {rank} did not come to '{places[self.rank][1]}' within {self.timeout:g} s; the last exchange that "
            f"it came to is '{places[rank][1]}'. Fix: see what it waits for (a reward, a server, a disk), or raise "
            f"{TIMEOUT}; the run goes on with --resume"
        )

    def _dead(self, store: Any, rank: int) -> str:
        place = json.loads(store.get(f"at/{rank}"))[1] if store.check([f"at/{rank}"]) else "start"
        return _gone(rank, f"after '{place}'")

    def _beats(self, store: Any) -> list[bytes]:
        """The last sign of life of every rank; empty before the first."""
        keys = [f"beat/{rank}" for rank in range(self.size)]
        return [store.get(key) if store.check([key]) else b"" for key in keys]

    def _enter(self, what: str) -> None:
        """Note that this rank comes to an exchange."""
        self.calls += 1
        self.store.set(f"at/{self.rank}", json.dumps([self.calls, what]))

    def _watch(self, store: Any, ended: threading.Event) -> None:
        """Show that this rank lives, and end it when another has failed or died, even while it computes.

        A rank that waits inside a library cannot be interrupted, so its process is ended. Checkpoints are folders that
        are complete or absent.
        """
        last, since = self._beats(store), [time.monotonic()] * self.size
        while not ended.wait(BEAT_S):
            try:
                store.set(f"beat/{self.rank}", str(time.time()))
                now = self._beats(store)
                since = [t if a == b else time.monotonic() for t, a, b in zip(since, last, now, strict=True)]
                last = now
                silent = [r for r, t in enumerate(since) if r != self.rank and time.monotonic() - t > DEAD_S]
                if silent:
                    _tell(store, self._dead(store, silent[0]))
                failed = store.get("failed").decode() if store.check(["failed"]) else ""
            except RuntimeError as error:  # the store has gone with the rank that held it
                failed = _gone(0, str(error).splitlines()[0])
            if failed and not ended.wait(3 * BEAT_S):  # the main thread may be about to say it
                self._say(failed)
                os._exit(2)

    def _say(self, sentence: str) -> None:
        """Print a sentence if it is this rank's turn: rank 0's, or rank 1's where that one has gone."""
        if self.rank == int(sentence.startswith(GONE.format(rank=0))):
            sys.stderr.write(f"error: {sentence}\n")
            sys.stderr.flush()


class _Shared:
    """Divides prompts among the ranks, all rollouts of one prompt to the same, and gathers their rollouts.

    Args:
        source: makes this rank's rollouts.
    """

    def __init__(self, source: RolloutSource, world: Ranks) -> None:
        self.source = source
        self.world = world

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        """One rollout per prompt, in order, on every rank; each is generated by one rank."""
        names = list(dict.fromkeys(prompt.id for prompt in prompts))
        owner = {name: number * self.world.size // len(names) for number, name in enumerate(names)}
        index = [n for n, prompt in enumerate(prompts) if owner[prompt.id] == self.world.rank]
        made = self.source.rollout([prompts[n] for n in index], seed, step) if index else []
        bare = [(n, replace(rollout, prompt=Prompt(id=""))) for n, rollout in zip(index, made, strict=True)]
        found = sorted(chain(*self.world.gather(bare, "rollouts")), key=lambda pair: pair[0])
        return [replace(rollout, prompt=prompts[n]) for n, rollout in found]


class _SharedAuthor:
    """Divides rollouts among the ranks, and gathers the hints.

    Args:
        author: writes this rank's hints.

    Attributes:
        counts: the author's, of all ranks; None if it counts nothing.
    """

    def __init__(self, author: HintAuthor, world: Ranks) -> None:
        self.author = author
        self.world = world
        self.counts = None if getattr(author, "counts", None) is None else Counter[str]()

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Hint]]:
        """One list per rollout, on every rank."""
        before: Counter[str] = Counter(getattr(self.author, "counts", None))
        mine = range(self.world.rank, len(rollouts), self.world.size)
        written = dict(zip(mine, self.author.hints([rollouts[n] for n in mine]), strict=True))
        after: Counter[str] = Counter(getattr(self.author, "counts", None))
        new = after - before
        found = self.world.gather((written, new), "hints")
        if self.counts is not None:
            self.counts.update(chain.from_iterable(counts.elements() for _, counts in found))
        return [found[n % self.world.size][0][n] for n in range(len(rollouts))]


_joined: Ranks | None = None


def current() -> World:
    """The ranks that this process has joined; a world of one before ``join`` and without torchrun."""
    return _joined or World()


def join(device: str) -> World:
    """Meet the other ranks that torchrun has started, once per process; without torchrun there is one rank.

    Args:
        device: the run's; on GPUs each rank has the one of its number.

    Raises:
        ConfigError: the device is a single GPU's, or the timeout is no number.
    """
    global _joined
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or _joined:
        return current()
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if ":" in device:
        raise ConfigError(
            f"device: torchrun gives each rank a GPU, and '{device}' is one for all. Fix: set device=auto"
        )
    try:
        timeout = float(os.environ.get(TIMEOUT, WAITS_S))
    except ValueError:
        raise ConfigError(f"{TIMEOUT}: '{os.environ[TIMEOUT]}' is no number. Fix: give seconds") from None
    cuda = device == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=min(timeout, 300))))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )
    _joined = Ranks(store, rank, size, timeout)
    return _joined


def check_alone(what: str) -> None:
    """Refuse several processes.

    Raises:
        ConfigError: torchrun has started several.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise ConfigError(f"torchrun: {what} takes one process, not {size}. Fix: start it without torchrun")


def divided_as(parameter: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of a tensor, divided as a parameter is; all of it if that is not divided."""
    return whole


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, a dtype at a time, about ``BUCKET`` numbers together."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        for tensor in (t for t in tensors if t.dtype == dtype):
            bucket.append(tensor)
            if sum(t.numel() for t in bucket) >= BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket


class _Terminated(KeyboardInterrupt):
    """SIGTERM before the first step: from a scheduler, or from torchrun after another rank has died."""

    number = signal.SIGTERM


@contextmanager
def _terminated() -> Iterator[None]:
    """Raise ``_Terminated`` at SIGTERM instead of dying of it. During the steps a signal is noted instead."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated("ended by SIGTERM")

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _of_exchange(error: BaseException) -> bool:
    """Whether an error is of the exchange between ranks, not of this rank's own work."""
    from torch import distributed

    text = str(error).lower()
    words = ("gloo", "nccl", "connection", "timed out", "recvbytes", "sendbytes", "broken pipe", "store")
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in words)
    )


def _tell(store: Any, sentence: str) -> None:
    """Leave the reason why the job ends, unless there is one already."""
    try:
        store.compare_set("failed", "", sentence)
    except RuntimeError:
        return  # nobody is left to be told


def _gone(rank: int, where: str) -> str:
    return (
        f"{GONE.format(rank=rank)} ({where}). Fix: see its own output and its machine's memory; the run goes on with "
        "--resume"
    )
