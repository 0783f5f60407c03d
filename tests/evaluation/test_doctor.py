"""The doctor on runs whose first rollouts have no target."""

from pathlib import Path

from opd.config.read import read
from opd.evaluation.doctor import findings
from opd.parts import Objects, gather
from support.models import make_model


def test_rollouts_without_a_target_are_a_warning_and_no_error(tmp_path: Path) -> None:
    tree = {
        "student": "s",
        "prompts": {"path": "p.jsonl"},
        "teacher": {"weights": "frozen", "view": "hint"},
        "rollout": {"batch": 4, "max_new_tokens": 4},
        "log": [],
        "out": str(tmp_path / "out"),
    }
    prompts = [{"prompt": f"{a} {b}"} for a in "abcd" for b in "efgh"]
    lines = list(findings(gather(read(tree), Objects(student=make_model(0), prompts=prompts))))
    assert lines[-1].startswith("WARNING   no target for a token of these rollouts: teacher.view=hint, and no hint")
