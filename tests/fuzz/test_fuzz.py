"""2,000 mutated run files and 300 data files of fixed seeds: read or refused, never a traceback or a hang."""

from pathlib import Path

import pytest

from support.fuzz import check_data_file, check_run_file


@pytest.mark.slow
def test_mutated_run_files_are_read_or_refused(tmp_path: Path) -> None:
    assert [found for seed in range(2000) if (found := check_run_file(seed, tmp_path))] == []


@pytest.mark.slow
def test_mutated_data_files_are_read_or_refused(tmp_path: Path) -> None:
    assert [found for seed in range(300) if (found := check_data_file(seed, tmp_path))] == []
