"""Fixtures of all tests: real tiny models made on the spot, one thread, a fixed seed.

Torch is imported on first use: with several workers this file is also read by the process that starts them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from support.visit import chromium

if TYPE_CHECKING:
    from opd.models.language import LanguageModel


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in ("OPD_HINT_API_KEY", "OPD_TEACHER_API_KEY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def student() -> LanguageModel:
    from support.models import make_model

    return make_model(0)


@pytest.fixture
def teacher() -> LanguageModel:
    from support.models import make_model

    return make_model(1, layers=3, hidden=48)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real browser; tests skip without one."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs playwright: pip install playwright")
    if (program := chromium()) is None:
        pytest.skip("needs chromium, such as apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox of the browser needs rights that containers do not have; the pages are our own.
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
