"""Peaks of memory on a CPU, from the allocator's own record."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_of(run: Callable[[], object]) -> int:
    """Most bytes that tensors made inside ``run`` hold at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results = recorded.profiler.kineto_results.events()
    held = most = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in results if e.name() == "[memory]"):
        held += size
        most = max(most, held)
    return most
