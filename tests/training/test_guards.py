"""What counts as a collapse, and what is chance."""

import pytest

from opd.training.guards import Guards, validation

GUARDS = Guards(num_prompts=256)


def accuracy(value: float) -> dict[str, float]:
    return {"accuracy": value}


def test_collapse_below_the_start() -> None:
    seen = GUARDS.collapsed(accuracy(0.21), accuracy(0.21), accuracy(0.05))
    assert seen == "validation accuracy fell from 21.0% at the start to 5.0%"


def test_chance_is_no_collapse() -> None:
    assert GUARDS.collapsed(accuracy(0.21), accuracy(0.21), accuracy(0.15)) is None
    assert Guards(num_prompts=16).collapsed(accuracy(0.5), accuracy(0.5), accuracy(0.2)) is None


def test_collapse_below_the_best() -> None:
    assert GUARDS.collapsed(accuracy(0.2), accuracy(0.9), accuracy(0.5)) is None
    seen = GUARDS.collapsed(accuracy(0.2), accuracy(0.9), accuracy(0.4))
    assert seen == "validation accuracy fell from 90.0% at its best to 40.0%"


@pytest.mark.parametrize("name", ["reverse_kl", "text_loss"])
def test_a_divergence_collapses_upwards(name: str) -> None:
    assert GUARDS.collapsed({name: 1.0}, {name: 0.5}, {name: 1.4}) is None
    assert "rose" in (GUARDS.collapsed({name: 1.0}, {name: 0.5}, {name: 1.6}) or "")


def test_not_a_number_is_a_collapse() -> None:
    assert "not a number" in (
        GUARDS.collapsed({"reverse_kl": 1.0}, {"reverse_kl": 1.0}, {"reverse_kl": float("nan")}) or ""
    )


def test_nothing_measured_nothing_judged() -> None:
    assert GUARDS.collapsed({}, {}, {}) is None
    assert not GUARDS.better({"accuracy": 1.0}, {})
    assert validation({"length": 3.0}) is None


def test_better_follows_the_metric() -> None:
    assert GUARDS.better(accuracy(0.5), accuracy(0.4))
    assert not GUARDS.better(accuracy(0.4), accuracy(0.4))
    assert GUARDS.better({"reverse_kl": 0.1}, {"reverse_kl": 0.2})


def test_limits_in_a_row() -> None:
    assert not Guards(patience=2).lasting(1)
    assert Guards(patience=2).lasting(2)
    assert not Guards(max_skipped=3).skipped(2)
    assert Guards(max_skipped=3).skipped(3)
    assert Guards(max_idle=1).idle(1)
