"""The pipeline file: settings, overrides, references, and one error sentence before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.config import read as run_file
from opd.config.run import RunConfig
from opd.errors import OpdError
from opd.pipelines.config import read
from opd.pipelines.graph import architecture, build
from opd.pipelines.run import pipeline

RUN = {"run": "opd"}
SCORES = {"eval": ["stage:a"], "prompts": {"task": "math"}}


def tree(**stages: Any) -> dict[str, Any]:
    return {"out": "out", "stages": stages}


def settings(stage: dict[str, Any], overrides: Any = (), **top: Any) -> dict[str, Any]:
    return build(read({**tree(a=stage), **top}, overrides))["a"].settings


def test_a_stage_is_its_run_file_with_overrides() -> None:
    plain = settings(RUN)
    assert RunConfig.model_validate({**plain, "out": "o"}).optimizer.steps == run_file.read("opd").optimizer.steps
    for changed in ({"optimizer.steps": 5}, {"optimizer": {"steps": 5}}):
        expected = {**plain, "optimizer": {**plain["optimizer"], "steps": 5}}
        assert settings({**RUN, **changed}) == expected
    own = settings({**RUN, "prompts": {"path": "p.jsonl"}})
    assert (own["prompts"]["path"], own["prompts"]["task"], own["eval"]["prompts"]) == ("p.jsonl", None, None)
    view = settings({"run": "hint", "teacher": {"view": {"type": "privileged"}}})["teacher"]["view"]
    assert (view["type"], "author" in view) == ("privileged", False)
    assert settings({"run": "hint", "teacher.view.place": "start"})["teacher"]["view"]["place"] == "start"


def test_overrides_and_seeds() -> None:
    stage = {**RUN, "optimizer": {"steps": 3}}
    assert settings(stage, ["stages.a.optimizer.steps=7"])["optimizer"]["steps"] == 7
    assert settings(stage, {"stages.a": {"run": "grpo"}})["loss"]["signal"]["type"] == "reward"
    scores = {"eval": ["nano/math-base"], "prompts": {"task": "math"}}
    assert settings(scores, ["stages.a.prompts.limit=3"])["prompts"]["limit"] == 3
    assert [settings(stage, seed=4)["seed"], settings({**stage, "seed": 2}, seed=4)["seed"]] == [4, 2]
    assert settings(stage, ["seed=5"])["seed"] == 5
    assert settings({**RUN, "run": "opd"})["seed"] == 0
    config = read(tree(a=RUN), ["out=elsewhere", "parallel=2"])
    assert (config.out, config.parallel) == ("elsewhere", 2)


def test_references_make_the_graph_and_become_folders() -> None:
    stages = build(
        read(
            tree(
                scores={**SCORES, "eval": ["stage:c", "nano/math-base"]},
                c={"average": ["stage:a", "stage:b"]},
                b={**RUN, "teacher": {"model": "stage:a"}, "teacher.view": {"type": "context", "file": "stage:a"}},
                a=RUN,
            )
        )
    )
    assert list(stages) == ["a", "b", "c", "scores"]
    assert {name: stage.inputs for name, stage in stages.items()} == {
        "a": (),
        "b": ("a",),
        "c": ("a", "b"),
        "scores": ("c",),
    }
    teacher = stages["b"].resolved(Path("o"))["teacher"]
    assert (teacher["model"], teacher["view"]["file"]) == ("o/a", "o/a")
    assert stages["scores"].resolved(Path("o"))["eval"] == ["o/c", "nano/math-base"]
    assert list(stages["scores"].outside()) == [("eval.1", "nano/math-base")]
    assert ("teacher.model", "nano/math-teacher") in stages["a"].outside()
    assert architecture(stages, "stage:c") == "nano/math-base"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"out": "o"}, "'stages' has to be a mapping"),
        ({"stages": {"a": RUN}}, "'out' is missing"),
        ({**tree(a=RUN), "paralel": 2}, "unknown key 'paralel'; did you mean 'parallel'?"),
        ({**tree(a=RUN), "parallel": 0}, "'parallel' is 0"),
        (tree(a=None), "stages.a: None is not a mapping. Fix: give it run, average or eval"),
        (tree(a={"student": "x"}), "stages.a has none of run"),
        (tree(**{"a/b": RUN}), "'a/b' cannot name a folder"),
        (tree(a={"run": "odp"}), "stages.a.run: there is no recipe 'odp'"),
        (tree(a={"run": "missing.yaml"}), "cannot read run file 'missing.yaml'"),
        (tree(a={**RUN, "optimizer.stps": 3}), "unknown key 'stages.a.optimizer.stps'; did you mean 'stages.a.optimi"),
        (tree(a={**RUN, "optimizer": {"lr": "fast"}}), "'stages.a.optimizer.lr' is 'fast'"),
        (
            tree(a={**RUN, "teacher.weights": "live"}),
            "stages.a: loss.signal=full needs a teacher that differs from the student",
        ),
        (tree(a={**RUN, "out": "here"}), "stages.a.out: a stage writes to the pipeline's out and its own name"),
        (tree(a={**RUN, "student": "nano/nothing"}), "stages.a.student: there is no bundled model 'nano/nothing'"),
        (tree(a={**RUN, "student": "/nowhere"}), "stages.a.student: there is no '/nowhere'"),
        (tree(a=RUN, b={**RUN, "student": "stage:aa"}), "stages.b.student: there is no stage 'aa'; did you mean 'a'?"),
        (tree(a=RUN, s=SCORES, b={**RUN, "student": "stage:s"}), "stages.b.student: stage 's' measures and leaves no"),
        (tree(a={**RUN, "student": "stage:a"}), "stages: a → a wait for each other"),
        (
            tree(a={**RUN, "student": "stage:c"}, b={**RUN, "student": "stage:a"}, c={"average": ["stage:b", "x"]}),
            "→ c → b → a",
        ),
        (tree(a={"average": ["x"]}), "stages.a.average"),
        (tree(a={"average": ["x", "x"]}), "stages.a: 'x' is named twice"),
        (tree(a={"average": ["x", "y"], "weights": [1.0]}), "stages.a: 2 models and 1 weights"),
        (tree(a={"average": ["x", "y"], "weights": [0.5, 0.6]}), "stages.a: weights add up to 1.1"),
        (
            tree(a={"average": ["x", "y"], "weigths": [0.5, 0.5]}),
            "'stages.a.weigths'; did you mean 'stages.a.weights'?",
        ),
        (tree(a={"eval": ["x"]}), "'stages.a.prompts' is missing"),
        (
            tree(a={"eval": ["x"], "prompts": {"taks": "math"}}),
            "'stages.a.prompts.taks'; did you mean 'stages.a.prompts.ta",
        ),
        (
            tree(a={**RUN, "student": "nano/math-teacher"}, b=RUN, c={"average": ["stage:a", "stage:b"]}),
            "stages.c.average: 'stage:a' and 'stage:b' cannot be averaged",
        ),
        (
            tree(a=RUN, b={**RUN, "prompts": {"task": "tools"}, "teacher": {"models": {"math": "stage:a"}}}),
            "stages.b.teacher.models: no teacher has the domain 'tools' of prompt 'tools/train/0' (they have math)",
        ),
        (
            tree(
                a={**RUN, "student": "nano/math-teacher-bpe", "teacher": {"model": "nano/math-teacher-bpe"}},
                b={**RUN, "teacher": {"models": {"math": "stage:a"}}},
            ),
            "stages.b.teacher.models.math: the teacher's vocabulary is not the student's",
        ),
    ],
)
def test_an_invalid_pipeline_is_refused_in_one_line_before_anything_runs(
    source: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("opd.pipelines.run.Worker", None)  # a pipeline that is not refused fails here
    with pytest.raises(OpdError) as error:
        pipeline(source)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.b.optimizer.steps=3", "there is no stage 'b'; did you mean"),
        ("optimizer.steps=3", "unknown key 'optimizer'"),
        ("seed", "is not of the form key=value"),
    ],
)
def test_overrides_of_unknown_keys_are_refused(override: str, words: str) -> None:
    with pytest.raises(OpdError, match=words):
        read(tree(bb=RUN), [override])


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("out: o\nstages:\n  a: {run: opd}\n  b: {run: opd}\n  a: {run: grpo}\n")
    with pytest.raises(OpdError, match=r"'a' stands twice, on lines 3 and 5; rename or delete one"):
        opd.pipeline(file)
    file.write_text("base: &base {run: opd, seed: 1}\na: {<<: *base, seed: 2}\n")
    with pytest.raises(OpdError, match="'stages' has to be"):  # a key merged in with << may be overridden
        opd.pipeline(file)


def test_a_folder_with_foreign_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(OpdError, match="exists and is no pipeline of opd"):
        pipeline(tree(a=RUN), {"out": str(tmp_path)})
    (tmp_path / "thesis.txt").rename(tmp_path / "pipeline.json")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text(json.dumps({}))
    with pytest.raises(OpdError, match="has files that are not of stage 'a'"):
        pipeline(tree(a=RUN), {"out": str(tmp_path)})
