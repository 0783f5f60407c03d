"""Compares LaTeX expressions line by line, in a process of its own; ``opd.data.maths`` starts it.

An expression such as 9^{9^{9}} keeps Python busy inside a single operation, which no timer in the same process can end.
Here the operating system ends it, and the next comparison starts a new process. The file imports nothing of opd.
"""

import json
import logging
import resource
import sys
from typing import Any

CPU_SECONDS = 3
"""Most processor time of one comparison. Unlike a clock it gives the same verdict on a busy machine."""

MEMORY_BYTES = 4 * 2**30
"""Most address space."""


def main() -> None:
    """Answer each line of standard input, a JSON pair [answer, reference], with ``true`` or ``false``."""
    logging.disable(logging.CRITICAL)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    settings = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(text: str) -> Any:
        return parse(
            f"\\boxed{{{text}}}",
            settings,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )

    for line in sys.stdin:
        answer, reference = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS)
        try:
            equal = bool(verify(read(reference), read(answer), timeout_seconds=None))
        except (Exception, RecursionError, MemoryError):  # whatever sympy raises about odd input
            equal = False
        print(json.dumps(equal), flush=True)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main()
