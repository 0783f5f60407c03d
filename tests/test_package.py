"""The package from outside: its public names, and its types for users' own checkers."""

from __future__ import annotations

from importlib.resources import files

import pytest

import opd


def test_dir_lists_the_public_names() -> None:
    assert set(opd.__all__) <= set(dir(opd))


@pytest.mark.parametrize("name", opd.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(opd, name) is not None


def test_users_type_checkers_read_the_annotations() -> None:
    assert files("opd").joinpath("py.typed").is_file()
