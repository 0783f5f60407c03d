"""What the pages state about the package, compared with the package itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import opd
import opd.config.run
from opd.axes.base import AXES, GIVEN
from opd.config.read import read
from opd.errors import ConfigError
from opd.losses import DIVERGENCES
from opd.models.loading import load
from support.rollout_server import RolloutServer
from support.served import Teacher

DOCS = Path(__file__).parents[1] / "docs"

PLACES = {
    "TERM": "(?:distill|policy_gradient|anchor|sft|teacher_entropy|reward_gradient)",
    "KIND": "(?:number|word|mark|special)",
    "DOMAIN": "[a-z]+",
    "LABEL": "[a-z/]+",
    "A~B": "[a-z]+~[a-z]+",
    "N": "[0-9]+",
    "NAME": "[a-z_]+",
}
"""Placeholders in the names of ``docs/metrics.md``."""

DIFFUSION = {"reward_gradient", "spread", "frechet", "distance", "teacher_frechet"}
"""Metrics of denoising students; tests/diffusion has their runs."""

SMALL: dict[str, Any] = {
    "optimizer.steps": 1,
    "rollout.prompts_per_step": 4,
    "eval.diagnostics": 8,
    "log": [],
    "report": False,
}
BOTH = [{"task": "math", "limit": 4}, {"task": "tools", "limit": 4}]

REWARDS = [
    {"function": "own_rewards:length", "weight": 0.1},
    {
        "judge": {"model": "nano/critic", "max_new_tokens": 16},
        "rubric": "Find the faulty turns.",
        "verdicts": {"turn": 0, "none": 1},
    },
]

RUNS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "hints": ("hint", {"eval.prompts.limit": 8}),
    "critic": ("hint", {"eval.prompts": None, "teacher.view.author": {"type": "model", "model": "nano/critic"}}),
    "terms": (
        "opd",
        {
            "eval.prompts.limit": 8,
            "eval.rollouts_per_prompt": 2,
            "eval.text": "texts.jsonl",
            "eval.divergence": True,
            "loss.signal": {"type": "sampled", "teacher_entropy": {"threshold": 0.0}},
            "loss.reward": 0.1,
            "loss.sft": 0.1,
            "rollout.rollouts_per_prompt": 4,
            "experimental.curriculum": {"success": 1.0},
        },
    ),
    "reward": ("grpo", {"eval.prompts.limit": 8, "rollout.prompts_per_step": 16}),
    "judge": (
        "kdrl",
        {
            "prompts": {"task": "math", "reward": REWARDS},
            "eval.prompts": {"task": "math", "split": "test", "limit": 4},
            "eval.rollouts_per_prompt": 2,
        },
    ),
    "rewarded teachers": (
        "opd",
        {
            "prompts": {"mix": BOTH, "reward": REWARDS[:1]},
            "eval.prompts": BOTH,
            "teacher.models": {"math": "nano/math-teacher", "tools": "nano/tools-base"},
        },
    ),
    "teachers": (
        "opd",
        {
            "prompts": BOTH,
            "eval.prompts": BOTH,
            "teacher.models": {"math": "nano/math-teacher", "tools": "nano/tools-base"},
            "experimental.conflict": True,
        },
    ),
}
"""Runs that together have every metric of a language model."""


def rows(*sections: str) -> dict[str, str]:
    """The names in the tables under these headings, and a pattern for each."""
    page = (DOCS / "metrics.md").read_text()
    parts = {part.splitlines()[0]: part for part in page.split("\n## ")[1:]}
    names = [name for section in sections for name in re.findall(r"^\| `([^`]+)` \|", parts[section], re.MULTILINE)]
    return {name: _pattern(name) for name in names}


def _pattern(name: str) -> str:
    places = "|".join(re.escape(place) for place in PLACES)
    return "".join(
        PLACES.get(part, re.escape(part)) for part in re.split(rf"((?<![a-zA-Z])(?:{places})(?![a-zA-Z]))", name)
    )


@pytest.mark.slow
def test_every_metric_is_explained_and_every_explained_metric_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "3 + 4 = 7"}) + "\n")
    (tmp_path / "own_rewards.py").write_text("def length(prompt, completion, row):\n    return len(completion)\n")
    found: dict[str, set[str]] = {"train": set(), "eval": set()}
    models = {name: load(f"nano/math-{name}", key=name) for name in ("teacher", "base")}
    with Teacher({"teacher": models["teacher"]}) as server, RolloutServer(models["base"]) as rolling:
        both: dict[str, Any] = {
            "teacher.served": server.url,
            "rollout.engine": {"type": "vllm", "url": rolling.url, "wait": 5},
        }
        opd.train("opd", {**SMALL, **both, "eval.prompts.limit": 8, "out": "served"})
    for name, (recipe, keys) in RUNS.items():
        opd.train(recipe, {**SMALL, **keys, "out": name})
    for name in ("served", *RUNS):
        for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines():
            for kind, metrics in json.loads(line).items():
                if kind in found:
                    found[kind] |= metrics.keys()
    shown = {
        "train": rows("Training steps"),
        "eval": rows("Evaluations", "Student and teacher compared", "Several teachers"),
    }
    for kind, explained in shown.items():
        # With several teachers each comparison with a teacher has a label behind its name.
        ends = r"(?:/[a-z]+(?:/[a-z]+)?)?" if kind == "eval" else ""
        unknown = {m for m in found[kind] if not any(re.fullmatch(p + ends, m) for p in explained.values())}
        assert unknown == set()
        unseen = {n for n, p in explained.items() if not any(re.fullmatch(p, m) for m in found[kind])}
        assert unseen - DIFFUSION == set()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_python_of_the_page_on_own_models(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / "your-own.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    space: dict[str, Any] = {}
    exec(blocks[number], space)
    assert space["result"].steps == 2


@pytest.mark.slow
@pytest.mark.parametrize("page", ["runs", "library"])
def test_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)
    space: dict[str, Any] = {}
    for block in blocks:
        exec(block, space)
    assert [step for step, _ in space["curve"].points] == [0, 2] if page == "runs" else space["losses"]


def test_no_metric_is_explained_twice() -> None:
    page = (DOCS / "metrics.md").read_text()
    for part in page.split("\n## ")[1:]:
        names = re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE)
        assert len(names) == len(set(names))


def test_every_kind_of_event_is_explained() -> None:
    source = "".join(path.read_text() for path in (DOCS.parent / "src" / "opd").rglob("*.py"))
    kinds = set(re.findall(r'\.event\([^"()]*"([a-z_]+)"', source)) | set(re.findall(r'\bStop\("([a-z_]+)"', source))
    page = (DOCS / "metrics.md").read_text()
    assert len(kinds) > 6
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in page] == []


def test_the_readme_lists_every_value_of_every_axis() -> None:
    rows = [line.split("|") for line in (DOCS.parent / "README.md").read_text().splitlines() if line.startswith("| ")]
    values = {key: cells[3] for cells in rows if len(cells) > 3 for key in re.findall("`([a-z._]+)`", cells[2])}
    shipped = {key: [v for v in known if v != GIVEN] for key, known in AXES.items() if "family" not in key}
    missing = {f"{key}={v}" for key, known in shipped.items() for v in known if not re.search(rf"\b{v}\b", values[key])}
    assert shipped.keys() >= {"loss.signal", "rollout.source", "teacher.view", "rollout.engine"}
    assert not missing
    divergences = {name for name in DIVERGENCES if ":" not in name and name != GIVEN}
    assert not {name for name in divergences if name not in values["loss.divergence"]}


def unknown(override: str) -> bool:
    """Whether an override's key does not exist; that its value may be wrong does not matter."""
    try:
        read("opd", [override])
    except ConfigError as error:
        return "unknown key" in str(error)
    return False


def test_the_page_for_users_of_trl_names_keys_that_exist() -> None:
    table = (DOCS / "coming-from-trl.md").read_text().split("## Options")[1].split("## Only in TRL")[0]
    rows = [line.split(" | ")[1] for line in table.splitlines() if line.startswith(("| `", "| GKD"))]
    spans = [span for cell in rows for span in re.findall("`([^`]+)`", cell)]
    keys = [span for span in spans if not span.startswith(("opd.", "--", ".")) and span not in DIVERGENCES]
    keys = [key for key in keys if key not in ("answer", "tools")]
    assert len(keys) >= 31
    assert [key for key in keys if unknown(key if "=" in key else f"{key}=1")] == []
    for key in keys:
        if "=" in key:
            read("opd", [key])
