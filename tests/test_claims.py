"""``benchmarks/claims.py``: the statistic, pairs that differ in one thing, and the section of the page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from opd.config.read import read

if TYPE_CHECKING:
    from methods import Figures, Run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "methods.md"

DIFFERENT = {
    "early tokens weighted beat all alike": {"loss.token_weights"},
    "a hint above the turn beats one at the start": {"teacher.view"},
    "going beyond the teacher's reward beats not": {"loss.signal"},
    "off- then on-policy beats off-policy alone": {"rollout.source"},
    "on-policy beats supervised, sampled": {"rollout.source", "teacher.model", "loss.signal", "loss.divergence"},
    "off- then on-policy beats on-policy alone": {"rollout.source"},
    "the teacher's doubts learned beat leaving them": {"loss.signal"},
    "feedback beats GRPO": {"teacher.weights", "teacher.view", "loss.signal", "loss.divergence"},
}
"""The axes on which the two runs of each pair differ."""


@pytest.fixture(autouse=True)
def _benchmarks() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def figures(value: float, metric: str = "avg@8") -> Figures:
    from methods import Figures

    return Figures({}, {metric: value}, 8, 100, 0, 4.0, None, [], {})


def test_the_interval_is_students_over_paired_differences() -> None:
    from claims import Verdict

    worse = [0.30, 0.50, 0.20, 0.40, 0.10, 0.60, 0.35, 0.25]  # spread far wider than the differences
    verdict = Verdict.of([w + n / 100 for n, w in enumerate(worse, 1)], worse)
    assert verdict.mean == pytest.approx(0.045)
    assert verdict.half == pytest.approx(0.0204782, rel=1e-5)  # t(0.975, 7) = 2.364624, deviation of 1..8 = 2.449490
    assert verdict.interval == "+4.5 (+2.5 to +6.5)"
    assert verdict.words == "holds"


def test_a_single_seed_decides_nothing() -> None:
    from claims import Verdict

    assert Verdict.of([0.9], [0.1]).words == "undecided"


@pytest.mark.parametrize(
    ("mean", "half", "words"),
    [
        (0.03, 0.029, "holds"),
        (0.005, 0.004, "holds"),  # small, and above 0
        (-0.03, 0.02, "does **not** hold"),
        (0.005, 0.01, "equal within 2 points"),
        (-0.01, 0.01, "equal within 2 points"),
        (0.01, 0.011, "undecided"),
        (0.0, 0.05, "undecided"),
    ],
)
def test_the_verdict_follows_from_the_interval(mean: float, half: float, words: str) -> None:
    from claims import Verdict

    assert Verdict(mean, half).words == words


def axes(run: Run) -> dict[str, Any]:
    """A run's settings by their first two keys; how often a recipe evaluates plays no part."""
    tree = read(run.recipe, run.overrides).model_dump(exclude={"method": True, "out": True, "eval": {"every"}})
    parts = {key: part if isinstance(part, dict) else {"": part} for key, part in tree.items()}
    return {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items()}


def test_the_runs_of_a_pair_differ_in_what_the_claim_is_about() -> None:
    from claims import PAIRS

    for pair in PAIRS:
        one, other = (axes(run) for _, run in (pair.better, pair.worse))
        assert {key for key in one if one[key] != other[key]} == DIFFERENT[pair.claim], pair.claim


def test_the_section_is_written_beside_all_others(tmp_path: Path) -> None:
    import methods
    from claims import PAIRS, section

    page = tmp_path / "methods.md"
    page.write_text(PAGE.read_text())
    before = methods.sections(page.read_text())
    better, worse = [[figures(x) for x in values] for values in ((0.5, 0.52), (0.4, 0.41))]
    text = section([(PAIRS[4], better, worse, "2")], seeds=2)
    for _ in range(2):
        methods.write_section(page, text)
        written = methods.sections(page.read_text())
        assert list(written)[-2:] == [methods.DECIDED, methods.DENOISING]
        assert {h: t.strip() for h, t in written.items() if h != methods.DECIDED} == {
            h: t.strip() for h, t in before.items() if h != methods.DECIDED
        }
        assert written[methods.DECIDED].strip() == text.strip()
    methods.write_page(page, "# New\n\n## On `math`\n\nfigures\n")
    assert list(methods.sections(page.read_text())) == ["", "## On `math`", methods.DECIDED, methods.DENOISING]


def test_a_line_has_both_figures_the_difference_and_the_power() -> None:
    from claims import PAIRS, row

    cells, _ = row(PAIRS[4], [figures(0.5), figures(0.53)], [figures(0.5), figures(0.51)])
    assert cells[3:] == [
        "`iw` 51.5% in 4 s, `tml` 50.5% in 4 s; avg@8",
        "+1.0 (-11.7 to +13.7)",
        "±12.7",
        "undecided",
    ]


def test_the_reason_is_shown_only_where_the_claim_does_not_hold() -> None:
    from dataclasses import replace

    from claims import PAIRS, section

    pair = replace(PAIRS[4], why="the reason.")
    low, high = [figures(0.4), figures(0.41)], [figures(0.5), figures(0.52)]
    assert "the reason." in section([(pair, low, high, "2")], seeds=2)
    assert "the reason." not in section([(pair, high, low, "2")], seeds=2)


def test_the_shipped_page_is_what_its_writers_leave() -> None:
    import methods

    assert methods.joined(methods.sections(PAGE.read_text())) == PAGE.read_text()


def test_only_complete_pairs_are_reported_from_the_cache() -> None:
    from claims import PAIRS, complete
    from methods import key_of

    pair = PAIRS[4]
    made = {key_of(run, seed) for _, run in (pair.better, pair.worse) for seed in range(2)}
    assert complete(pair, range(2), made)
    assert not complete(pair, range(3), made)


def test_what_the_first_seeds_leave_undecided_is_judged_by_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import claims
    from methods import key_of

    pair = claims.PAIRS[4]
    gains = [0.1, -0.1, 0.0, 0.12, 0.11, 0.1]  # of the first three seeds nothing follows
    kept = {}
    for seed, gain in enumerate(gains):
        kept[key_of(pair.better[1], seed)] = asdict(figures(0.4 + gain))
        kept[key_of(pair.worse[1], seed)] = asdict(figures(0.4))
    cache, page = tmp_path / "claims.json", tmp_path / "methods.md"
    cache.write_text(json.dumps(kept))

    def line(*more: str) -> str:
        fixed = ["claims.py", "--cached", "--cache", str(cache), "--seeds", "3", "--only", pair.claim]
        monkeypatch.setattr(sys, "argv", [*fixed, "--write", str(page), *more])
        claims.main()
        capsys.readouterr()
        return next(text for text in page.read_text().splitlines() if text.startswith(f"| {pair.claim}"))

    assert "| 3 others; of the first 3: +0.0 (-24.8 to +24.8) | +11.0 (+8.5 to +13.5) | ±2.5 | holds |" in line(
        "--others", "3"
    )
    for others in ("0", "16"):  # none are wanted, or not all of them are made
        assert "| 3 | +0.0 (-24.8 to +24.8) | ±24.8 | undecided |" in line("--others", others)


@pytest.mark.slow
def test_a_run_is_measured_once_at_its_end(tmp_path: Path) -> None:
    from claims import measure, sized

    run = sized("hint", 1, prompts=4, eval__prompts__limit=4)
    result = measure(run, 0, str(tmp_path))
    assert result.steps == 1
    assert result.before == {}
    assert set(result.after) == {"avg@8", "pass@8"}
    assert result.after["avg@8"] <= result.after["pass@8"]
    assert not list(tmp_path.rglob("metrics.jsonl"))
    json.dumps(result.after)
