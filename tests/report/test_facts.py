"""What the page says about a run without its rollouts: settings, time, best weights, differences, waiting."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from rich.console import Console

from opd.errors import DataError
from opd.report.data import run_data
from opd.report.facts import differing, facts, times
from opd.report.live import LiveServer
from opd.report.view import follow
from support.written_run import write_run


def test_facts_name_student_teachers_authors_and_servers() -> None:
    config: dict[str, Any] = {
        "student": "my/model",
        "lora": {"rank": 8},
        "teacher": {
            "models": {"maths": {"model": "a/b", "domains": ["math"]}, "rest": {"model": "c/d"}},
            "view": {"type": "hint", "author": {"type": "http", "url": "http://localhost:1/v1", "model": "critic"}},
        },
        "loss": {"signal": {"type": "full"}, "anchor": 0.2, "reward": {"weight": 1e-6}},
        "rollout": {"prompts_per_step": 4, "rollouts_per_prompt": 8, "max_new_tokens": 32},
        "optimizer": {"lr": 5e-6},
    }
    found = list(facts(config, "reverse KL"))
    assert ("student", "my/model, adapters of rank 8 are trained (LoRA)") in found
    assert ("teacher", "maths: a/b, on prompts of math") in found
    assert ("teacher", "rest: c/d") in found
    assert ("hints by", "http (critic, http://localhost:1/v1)") in found
    assert ("loss", "reverse KL, 0.2 × KL to the initial weights, 1e-6 × rewards") in found
    assert ("a step", "4 prompts × 8 rollouts, at most 32 tokens, learning rate 5e-6") in found
    assert ("server", "http://localhost:1/v1 (teacher.view.author.url)") in found


def test_a_student_that_came_as_an_adapter_is_not_said_to_train_all_weights(tmp_path: Path) -> None:
    run, student = write_run(tmp_path / "run"), tmp_path / "student"
    config = json.loads((run / "run.json").read_text()) | {"student": str(student), "lora": None}
    (run / "run.json").write_text(json.dumps(config))

    def said() -> str:
        found: str = dict(run_data(run)["facts"])["student"]
        return found.removeprefix(str(student))

    assert said() == ""  # the run is not finished and its student is not on this disk
    student.mkdir()
    (student / "config.json").write_text("{}")
    assert said() == ", all weights are trained"
    (student / "config.json").rename(student / "adapter_config.json")
    assert said() == ", an adapter that is trained further (LoRA)"
    shutil.rmtree(student)
    (run / "adapter_config.json").write_text("{}")
    assert said() == ", an adapter that is trained further (LoRA)"


def test_times_are_parts_of_the_whole_run_and_new_parts_are_named() -> None:
    steps = [{"rollout_s": 1.0, "update_s": 2.0, "push_s": 0.5, "loss": 3.0}] * 2
    found = {part["name"]: part["seconds"] for part in times(steps, 10.0)}
    assert found == {"rollouts": 2.0, "update": 4.0, "push": 1.0, "evaluation, report, checkpoints": 3.0}
    assert sum(part["seconds"] for part in times(steps, None)) == 7.0
    assert times([{"loss": 1.0}], 5.0) == []


@pytest.mark.parametrize(
    ("accuracies", "best"), [((0.2, 0.9, 0.7), 1), ((0.2, 0.9, 0.9), 2), ((0.5, 0.4, 0.3), 0), ((0.1, 0.2, 0.3), 2)]
)
def test_the_best_step_is_the_last_unless_an_earlier_one_was_better(
    accuracies: tuple[float, ...], best: int, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    lines = [{"step": step, "eval": {"accuracy": accuracy}} for step, accuracy in enumerate(accuracies)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_data(run)["best_step"] == best


def test_curves_have_the_tokens_and_seconds_up_to_each_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    timed = {"tokens": 100.0, "rollout_s": 0.5, "teacher_s": 0.25, "update_s": 0.25}
    lines: list[dict[str, Any]] = [{"step": 0, "eval": {"accuracy": 0.1}}]
    lines += [{"step": step, "train": timed} for step in (1, 2)]
    lines += [{"step": 2, "eval": {"accuracy": 0.2}}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = run_data(run)
    assert (data["train"]["tokens"], data["train"]["seconds"]) == ([100, 200], [1.0, 2.0])
    assert (data["eval"]["tokens"], data["eval"]["seconds"]) == ([0, 200], [0.0, 2.0])


def test_differing_keys_have_each_runs_value_and_leave_out_folder_and_recipe() -> None:
    one = {"out": "a", "method": {"title": "x"}, "optimizer": {"lr": 1e-3, "steps": 5}, "lora": None}
    two = {"out": "b", "method": {"title": "y"}, "optimizer": {"lr": 1e-4, "steps": 5}, "lora": {"rank": 8}}
    assert differing([one, two]) == [("optimizer.lr", [1e-3, 1e-4]), ("lora.rank", [None, 8])]
    assert differing([one, {**one, "out": "c"}]) == []


def test_a_live_page_is_served_before_its_runs_have_begun(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    with LiveServer(folders) as server:

        def shown() -> Any:
            return server.root().current()[1]

        names = {server.root().current()[0]}
        assert shown()["waiting"] == [{"folder": str(folder), "exists": False} for folder in folders]
        write_run(folders[0])
        folders[1].mkdir()
        names.add(server.root().current()[0])
        assert shown()["waiting"] == [{"folder": str(folders[1]), "exists": True}]
        folders[1].rmdir()
        write_run(folders[1])
        names.add(server.root().current()[0])
        assert [run["name"] for run in shown()["runs"]] == ["one", "two"]
        assert len(names) == 3  # a page that polls gets each of them
        (folders[1] / "run.json").unlink()
        assert shown()["waiting"][0]["folder"] == str(folders[1])
        (folders[1] / "pipeline.json").write_text("{}")
        with pytest.raises(DataError, match="two' is a pipeline and cannot be shown beside others"):
            shown()


def test_the_command_names_the_page_of_a_run_that_has_not_begun_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(server: LiveServer) -> None:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        with urlopen(server.url) as answer:
            pages.append(answer.read().decode())
        answering.join()
        raise KeyboardInterrupt

    pages: list[str] = []
    monkeypatch.setattr(LiveServer, "serve_forever", asked)
    console = Console(file=io.StringIO(), width=40)
    follow(console, [tmp_path / "[b]run"], port=0, browser=False)
    assert isinstance(console.file, io.StringIO)
    waiting, live = console.file.getvalue().splitlines()[:2]
    assert waiting == f"waiting  for a run to begin in {tmp_path}/[b]run"
    assert live.startswith("live     http://127.0.0.1:")
    assert f'"folder":"{tmp_path}/[b]run","exists":false' in pages[0]


def test_a_damaged_file_of_a_live_page_is_a_sentence_until_it_is_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    whole = (run / "run.json").read_text()
    with LiveServer([run]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            (run / "run.json").write_text(whole[:-5])
            with pytest.raises(HTTPError) as refused:
                urlopen(f"{server.url}data.json")
            with refused.value as answer:
                assert answer.status == 503
                assert "run.json' is damaged" in answer.read().decode()
            (run / "run.json").write_text(whole)
            with urlopen(f"{server.url}data.json") as answer:
                assert json.load(answer)["runs"][0]["name"] == "run"
        finally:
            server.shutdown()
            thread.join()
