"""The guards: which evaluations count as a collapse, and when the run stops."""

import pytest

from opd.config.run import GuardsConfig
from opd.training.actions import Continue, Stop
from opd.training.guards import Guards, Watch, better, validation

GUARDS = Guards(num_prompts=256)


def accuracy(value: float) -> dict[str, float]:
    return {"accuracy": value}


def test_collapse_below_the_start() -> None:
    seen = GUARDS.collapsed(accuracy(0.21), accuracy(0.21), accuracy(0.05))
    assert seen == "validation accuracy fell from 21.0% at the start to 5.0%"


def test_a_fall_within_three_standard_errors_is_no_collapse() -> None:
    assert GUARDS.collapsed(accuracy(0.21), accuracy(0.21), accuracy(0.15)) is None
    assert Guards(num_prompts=16).collapsed(accuracy(0.5), accuracy(0.5), accuracy(0.2)) is None


def test_collapse_below_the_best() -> None:
    assert GUARDS.collapsed(accuracy(0.2), accuracy(0.9), accuracy(0.5)) is None
    seen = GUARDS.collapsed(accuracy(0.2), accuracy(0.9), accuracy(0.4))
    assert seen == "validation accuracy fell from 90.0% at its best to 40.0%"


@pytest.mark.parametrize("name", ["reverse_kl", "text_loss"])
def test_a_divergence_that_rises_by_half_has_collapsed(name: str) -> None:
    assert GUARDS.collapsed({name: 1.0}, {name: 0.5}, {name: 1.4}) is None
    assert "rose" in (GUARDS.collapsed({name: 1.0}, {name: 0.5}, {name: 1.6}) or "")


def test_not_a_number_is_a_collapse() -> None:
    assert "not a number" in (
        GUARDS.collapsed({"reverse_kl": 1.0}, {"reverse_kl": 1.0}, {"reverse_kl": float("nan")}) or ""
    )


def test_without_a_judged_metric_there_is_no_verdict() -> None:
    assert GUARDS.collapsed({}, {}, {}) is None
    assert not better({"accuracy": 1.0}, {})
    assert validation({"length": 3.0}) is None


def test_better_means_more_accuracy_and_less_divergence() -> None:
    assert better(accuracy(0.5), accuracy(0.4))
    assert not better(accuracy(0.4), accuracy(0.4))
    assert better({"reverse_kl": 0.1}, {"reverse_kl": 0.2})


def test_guards_stop_the_run_at_their_limits() -> None:
    fell = "validation accuracy fell"
    kept = "validation accuracy fell; the best weights, of step 4, are kept"
    assert Guards(patience=2).after_evaluation(fell, 1, best_step=4, last=False) == Continue()
    assert Guards(patience=2).after_evaluation(fell, 2, best_step=4, last=False) == Stop("collapse", kept)
    assert Guards(patience=2).after_evaluation(fell, 1, best_step=4, last=True) == Stop("collapse", kept)
    assert Guards(patience=2).after_evaluation(None, 0, best_step=4, last=True) == Continue()
    idle = {"best_step": 4, "stale": 5}
    assert isinstance(Guards(no_gain=2).after_evaluation(None, 0, last=False, **idle), Stop)
    assert Guards(no_gain=2).after_evaluation(None, 0, last=True, **idle) == Continue()  # the run has ended anyway
    assert Guards(max_skipped=3).after_skipped_step("loss", 2, weights_finite=True) == Continue()
    three = Stop("non_finite", "the loss was not finite for 3 steps in a row")
    assert Guards(max_skipped=3).after_skipped_step("loss", 3, weights_finite=True) == three
    damaged = Stop("non_finite", "weights of the student are not finite")
    assert Guards(max_skipped=3).after_skipped_step("loss", 1, weights_finite=False) == damaged
    assert Guards(max_idle=2).after_idle_step(1) == Continue()
    assert Guards(max_idle=2).after_idle_step(2) == Stop("idle", "no token had a target in 2 steps in a row")


def test_the_defaults_are_those_of_the_run_file() -> None:
    defaults = GuardsConfig().model_dump(exclude={"recover"})
    stops = {"drop": 0.5, "below_start": 0.05, "patience": 2, "max_skipped": 10, "max_idle": 5, "no_gain": None}
    assert defaults == stops
    assert Guards() == Guards(**defaults)


def test_a_metric_that_is_missing_later_is_not_judged() -> None:
    assert GUARDS.collapsed(accuracy(0.9), accuracy(0.9), {"length": 3.0}) is None
    assert GUARDS.unmeasured(accuracy(0.9), {"length": 3.0}) == "accuracy"
    assert GUARDS.unmeasured(accuracy(0.9), accuracy(0.1)) is None
    assert GUARDS.unmeasured({"length": 3.0}, {"length": 3.0}) is None
    assert not better({"length": 3.0}, accuracy(0.1))


def stopped(
    values: list[float], *, every: int = 5, warmup: int = 10, number: int = 96, steps: int = 1000
) -> int | None:
    """The step at which a run with these accuracies of held-out prompts is stopped; None if it goes on."""
    guards, best, previous, count = Guards(warmup=warmup, num_prompts=number), values[0], values[0], 0.0
    for index, value in enumerate(values):
        best, step = max(best, value), index * every
        seen = guards.collapsed(accuracy(values[0]), accuracy(best), accuracy(value))
        compared = {"previous": accuracy(previous), "best": accuracy(best), "now": accuracy(value)}
        count, previous = guards.counted(count, seen, step=step, **compared), value
        if isinstance(guards.after_evaluation(seen, count, best_step=0, last=step == steps), Stop):
            return step
    return None


@pytest.mark.parametrize(
    "values",
    [
        [0.51, 0.51, 0.34, 0.29, 0.34, 0.43, 0.51, 0.71],  # gold, as it was first seen
        [0.53, 0.51, 0.36, 0.32, 0.46, 0.50, 0.56],
        [0.51, 0.53, 0.43, 0.37, 0.52, 0.60],  # opd
        [0.51, 0.10, 0.05, 0.30, 0.50, 0.60],  # most of it during the warm-up
        [0.90, 0.90, 0.40, 0.20, 0.41, 0.60, 0.80],
        [0.53, 0.52, 0.29, 0.26, 0.30, 0.48, 0.53],  # tml, with seed 1
        [0.53, 0.51, 0.40, 0.26, 0.385, 0.365, 0.375, 0.52],  # kdrl, with seed 1
    ],
)
def test_a_dip_is_no_collapse(values: list[float]) -> None:
    assert stopped(values) is None


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0.53, 0.16, 0.0, 0.0, 0.0], 20),
        ([0.53, 0.55, 0.60, 0.70, 0.10, 0.0, 0.0], 25),
        ([0.53, 0.55, 0.60, 0.20, 0.18, 0.21], 20),
        ([0.53, 0.55, 0.60, 0.10, 0.25, 0.10, 0.25], 25),  # up and down, below what is left of it
        ([0.53, 0.50, 0.40, 0.30, 0.20, 0.10], 25),  # the first of them has lost less than half
        ([0.53, 0.50, 0.36, 0.36, 0.35, 0.36, 0.36], 30),  # a mild fall that stays
        ([1.0, 1.0, 1.0, 0.02, 0.03, 0.01], 20),
    ],
)
def test_a_fall_that_goes_on_is_a_collapse(values: list[float], step: int) -> None:
    assert stopped(values) == step


def test_the_last_evaluation_counts_alone_even_while_it_rises() -> None:
    assert stopped([0.53, 0.51, 0.36, 0.20], steps=15) == 15
    assert stopped([0.53, 0.10], steps=5) == 5


def test_a_divergence_that_comes_down_again_does_not_count() -> None:
    guards = Guards(warmup=0)
    best, previous, seen = {"reverse_kl": 1.0}, {"reverse_kl": 3.0}, "rose"
    now = {"reverse_kl": 2.4}
    assert guards.counted(1, seen, step=5, previous=previous, best=best, now=now) == 1
    assert guards.counted(1, seen, step=5, previous=previous, best=best, now={"reverse_kl": 2.6}) == 2
    assert guards.counted(1, None, step=5, previous=previous, best=best, now=best) == 0


def test_a_rise_within_one_standard_error_is_none() -> None:
    compared = {"previous": accuracy(0.20), "best": accuracy(0.55), "now": accuracy(0.273)}
    assert Guards(num_prompts=1000).counted(1, "fell", step=5, **compared) == 1
    assert Guards(num_prompts=20).counted(1, "fell", step=5, **compared) == 2


def test_a_mean_reward_is_measured_by_the_larger_of_its_start_and_its_best() -> None:
    guards = Guards(num_prompts=100_000)
    start, best = {"reward": -1.0}, {"reward": 0.1}
    assert guards.collapsed(start, best, {"reward": -0.3}) is None
    assert guards.collapsed(start, best, {"reward": -0.5}) is not None


def test_a_mean_reward_that_may_differ_by_chance_has_not_fallen() -> None:
    start, low = {"reward": 0.2}, {"reward": 0.05}
    assert Guards(num_prompts=16).collapsed(start, start, low) is None
    assert Guards(num_prompts=1600).collapsed(start, start, low) is not None


def test_a_reward_that_has_lost_less_than_the_share_is_not_lost() -> None:
    steady = [{"reward": 1.0}] * 10
    assert not Watch().lost(1.0, 0.95, 0.1, steady)
    assert Watch().lost(1.0, 0.85, 0.1, steady)


def test_a_watch_waits_for_its_least_steps() -> None:
    first, bad = {"length": 10.0, "accuracy": 0.9}, {"length": 50.0, "accuracy": 0.0}
    assert Watch(prompts=100, least=10).collapsed(first, 0.9, [bad] * 9) is None
    assert Watch(prompts=100, least=10).collapsed(first, 0.9, [bad] * 10) is not None
