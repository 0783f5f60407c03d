"""Read many mutated run files and data files: ``python benchmarks/fuzz.py --files 20000``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fuzz import check_data_file, check_run_file


def main() -> None:
    """Print the findings and a summary; exit status 1 with findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="number of files; every seventh is a data file")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    given = parser.parse_args()
    started, findings = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.first, given.first + given.files):
            found = (check_run_file if seed % 7 else check_data_file)(seed, Path(folder))
            if found:
                findings += 1
                print(found, flush=True)
    print(f"{given.files} files, {findings} findings, {time.perf_counter() - started:.0f} s")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
