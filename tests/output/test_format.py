"""The metric table: names, percentages, main metrics, and its copy for the pages."""

from __future__ import annotations

import json

import pytest

from opd.output.format import (
    HEADLINE_TEACHER,
    MAIN,
    METRICS,
    STEP,
    TILES,
    base_name,
    format_line,
    format_value,
    headline,
    main_metric,
    metric_table,
)
from opd.training.guards import validation


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("accuracy", 0.25, "25.0%"),
        ("accuracy/math", 1.0, "100.0%"),
        ("avg@4", 0.5, "50.0%"),
        ("teacher_accuracy/math/a", 0.5, "50.0%"),
        ("equal_groups", 0.75, "75.0%"),
        ("distill_share", 0.2, "20.0%"),
        ("teacher/overlap@16", 0.81, "81.0%"),
        ("teacher/entropy_gap", 0.1406, "0.141"),
        ("teacher/reverse_kl/quarter_1", 0.5, "0.500"),
        ("conflict/jsd/math/a~b", 0.5, "0.500"),
        ("loss", 0.0931, "0.093"),
        ("length", 16.07, "16.070"),
    ],
)
def test_shares_are_printed_in_percent_and_other_metrics_with_three_decimals(
    name: str, value: float, expected: str
) -> None:
    assert format_value(name, value) == expected
    assert format_line({name: value}) == f"{name} {expected}"


def test_base_names_have_no_prefix_domain_and_number() -> None:
    names = ["teacher/overlap@16", "accuracy/math", "avg@4", "conflict/cosine/a~b", "teacher_accuracy", "length"]
    assert [base_name(n) for n in names] == ["overlap", "accuracy", "avg", "cosine", "teacher_accuracy", "length"]


def test_the_main_metric_is_the_first_of_the_list_that_was_measured() -> None:
    assert main_metric(["length", "text_loss", "reverse_kl"]) == "reverse_kl"
    assert main_metric(["length", "distance"]) == "distance"
    assert main_metric(["length", "accuracy/math", "teacher/reverse_kl"]) is None


def test_guards_judge_by_the_main_metric_and_its_direction() -> None:
    assert [validation({name: 0.0}) for name in MAIN] == [
        ("accuracy", True),
        ("reward", True),
        ("reverse_kl", False),
        ("text_loss", False),
        ("distance", False),
    ]
    assert validation({"length": 1.0}) is None


def test_tables_leave_out_the_details_of_the_teacher_comparison() -> None:
    metrics = {"accuracy": 1.0, "teacher/overlap@16": 1.0, "teacher/forward_kl": 1.0, "conflict/jsd/a": 1.0}
    assert list(headline(metrics)) == ["accuracy", "teacher/overlap@16"]


def test_every_list_names_metrics_of_the_table() -> None:
    assert set(MAIN) | set(TILES) | {base_name(name) for name in HEADLINE_TEACHER} <= METRICS.keys()
    assert "accuracy" in STEP
    table = json.loads(json.dumps(metric_table()))
    assert table["tiles"] == list(TILES)
    assert table["metrics"]["accuracy"] == {"label": "correct answers", "percent": True, "better": "higher"}
    assert table["metrics"]["length"]["better"] is None
