"""What happens when a rank fails, dies or hangs: one sentence, and the end of all ranks."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from opd.errors import OpdError, RankError

TIMEOUT = "OPD_RANK_TIMEOUT"
"""Environment variable: seconds that a rank waits for the others; by default ``WAITS_S``."""

WAITS_S, DEAD_S, BEAT_S = 1800.0, 20.0, 1.0
"""Seconds: the default of ``OPD_RANK_TIMEOUT``; without a sign of life until a rank is dead; between two signs."""

GONE = "rank {rank} has died or cannot be reached"

EXCHANGE = ("gloo", "nccl", "connection closed", "connection reset", "timed out waiting", "recvvalue", "broken pipe")
"""Words of an error of the libraries that carry the exchange between ranks."""


class Watch:
    """Knows where every rank is, and ends them together.

    Args:
        store: small texts that every rank can read: where each rank is, its last sign of life, why one has stopped.
        timeout: seconds after which an exchange is given up.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self.rank = rank
        self.size = size
        self.timeout = timeout
        self.runs, self.calls = 0, 0
        self.outer, self.store = store, store

    @contextmanager
    def together(self, end: Callable[[], Any]) -> Iterator[None]:
        """See ``World.together``: rank 0 raises the sentence, and the others a ``RankError``.

        Args:
            end: waits for the other ranks after the run.
        """
        from torch.distributed.distributed_c10d import PrefixStore

        self.runs += 1
        self.store = PrefixStore(f"opd/{self.runs}", self.outer)
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(self.store.clone(), ended), daemon=True)
        watch.start()
        with _terminated() as ending:
            try:
                yield
                end()
            except (Exception, _Terminated) as error:
                ending.set()
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

    def enter(self, what: str) -> None:
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


class _Terminated(KeyboardInterrupt):
    """SIGTERM before the first step: from a scheduler, or from torchrun after another rank has died."""

    number = signal.SIGTERM


@contextmanager
def _terminated() -> Iterator[threading.Event]:
    """Raise ``_Terminated`` at SIGTERM instead of dying of it. During the steps a signal is noted instead.

    Once the event is set, as the run is ending, SIGTERM does nothing: torchrun sends it when another rank has ended.
    """
    ending = threading.Event()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield ending
        return

    def end(number: int, frame: FrameType | None) -> None:
        if not ending.is_set():
            raise _Terminated("ended by SIGTERM")

    signal.signal(signal.SIGTERM, end)
    try:
        yield ending
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _of_exchange(error: BaseException) -> bool:
    """Whether an error is of the exchange between ranks, not of this rank's own work."""
    from torch import distributed

    text = str(error).lower()
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in EXCHANGE)
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
