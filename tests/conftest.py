"""Fixtures of all tests: real tiny models made on the spot, one thread, a fixed seed."""

from __future__ import annotations

import pytest
import torch

from opd.models.language import LanguageModel
from support.models import make_model


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in ("OPD_HINT_API_KEY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def student() -> LanguageModel:
    return make_model(0)


@pytest.fixture
def teacher() -> LanguageModel:
    return make_model(1, layers=3, hidden=48)
