"""The page of a denoising run, as a file and from the live server."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import threading
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from opd.cli import app
from opd.errors import DataError
from opd.report.denoising import STAGES, denoising_data, facts, is_denoising
from opd.report.live import LiveServer
from opd.report.page import page, trees, write_page, write_report
from opd.report.samples import SAMPLES, TEACHER, Samples
from support.written_grids import write_grids
from support.written_run import HOSTILE, write_run


def embedded(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def shown(source: str) -> Any:
    """The image of a ``data:`` address."""
    kind, _, code = source.partition(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")


def test_the_run_file_chooses_the_page(tmp_path: Path) -> None:
    images, text = write_grids(tmp_path / "images"), write_run(tmp_path / "text")
    assert is_denoising(images)
    assert not is_denoising(text)
    assert not is_denoising(tmp_path)
    assert 'id="images"' in write_report(images).read_text(encoding="utf-8")
    assert 'id="tokens"' in write_report(text).read_text(encoding="utf-8")


def test_the_images_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = write_grids(tmp_path / "run", shown=2, steps=(0, 20, 40))
    data = denoising_data(folder)["samples"]
    assert [row["step"] for row in data["steps"]] == [0, 20, 40]
    for row in data["steps"]:
        assert [shown(source).getpixel((1, 1)) for source in row["images"]] == [(row["step"],) * 3] * 4
    assert shown(data["steps"][0]["images"][0]).tobytes() == Samples(folder / SAMPLES).images(0)[0].tobytes()
    assert shown(data["teacher"][2]).getpixel((32, 32)) == (65, 105, 225)
    assert len(data["shown"]) == len(data["references"]) == 2
    assert [prompt["text"][-1] for prompt in data["prompts"]] == ["0", "1", "2", "3"]


def test_large_images_are_scaled_down_and_then_left_out(tmp_path: Path) -> None:
    folder = write_grids(tmp_path / "run", steps=tuple(range(0, 120, 20)), side=300)
    whole = denoising_data(folder)
    assert whole["left_out"] == ""
    assert shown(whole["samples"]["teacher"][0]).size == (256, 256)
    little = denoising_data(folder, budget=40_000)
    assert little["left_out"] == "evaluations in between"
    steps = [row["step"] for row in little["samples"]["steps"]]
    assert steps[0] == 0
    assert steps[-1] == 100
    assert len(steps) < 6
    assert shown(little["samples"]["teacher"][0]).width == STAGES[-1][0]
    sources = [s for row in little["samples"]["steps"] for s in row["images"]]
    assert sum(map(len, sources)) < 40_000


def test_hostile_text_stays_data_in_every_place(tmp_path: Path) -> None:
    report = write_report(write_grids(tmp_path / "<b>run", text=HOSTILE, shown=2))
    text = report.read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "<title>&lt;b&gt;run</title>" in text
    (run,) = embedded(report)["runs"]
    assert run["samples"]["prompts"][0]["text"] == f"{HOSTILE} 0"
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "img-src data:;" in policy[1]
    assert "connect-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    assert not re.search(r'<[a-z]+[^>]*\s(?:src|href)="(?!#|data:,)', text)


def test_a_run_without_metrics_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"family": "diffusion"}))
    data = denoising_data(folder)
    assert data["samples"] == {"prompts": [], "references": [], "steps": [], "teacher": [], "shown": []}
    assert not data["finished"]
    write_report(folder)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    folder = write_grids(tmp_path / "run")
    (folder / "samples" / "000020.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=re.escape("000020.png")):
        denoising_data(folder)
    Image.new("RGB", (11, 40)).save(folder / "samples" / "000020.png")
    with pytest.raises(DataError, match="is no row of 4 images"):
        denoising_data(folder)


def test_facts_describe_the_run_file() -> None:
    config: dict[str, Any] = {
        "student": "mine",
        "lora": {"rank": 8},
        "teacher": {"weights": {"type": "ema"}, "view": {"type": "image"}, "guidance": 1.0},
        "loss": {
            "signal": {"type": "prediction"},
            "divergence": "x0",
            "reward": {"weight": 0.5},
            "step_weights": [1.0, 0.0],
        },
        "rollout": {
            "source": {"type": "student"},
            "prompts_per_step": 4,
            "rollouts_per_prompt": 3,
            "steps": 2,
            "sigmas": [1.0, 0.5],
            "noise": 0.7,
        },
        "optimizer": {"lr": 1e-4},
        "eval": {"every": 5, "prompts": {"path": "p"}, "steps": 9},
    }
    said = dict(facts(config))
    assert said["student"] == "mine, by LoRA of rank 8"
    assert said["teacher"] == "a running average of the student, which sees the prompt's image"
    assert said["loss"].startswith("squared distance of denoised means, 0.5 times the policy gradient")
    assert said["loss"].endswith("states weighted 1, 0")
    assert said["sampler"] == "2 steps, noise levels of the run file, noise 0.7, no guidance"
    assert said["a step"] == "4 prompts, 3 trajectories of each; learning rate 0.0001"
    assert said["measured"] == "every 5 steps, in 9 denoising steps without noise"
    assert "teacher" not in dict(facts({**config, "loss": {"signal": {"type": "reward"}}}))
    noised = {**config, "rollout": {"source": {"type": "images", "of": "teacher"}}, "optimizer": {}}
    assert dict(facts(noised))["trained on"] == "teacher's images, noised"


def test_a_denoising_page_shows_one_run(tmp_path: Path) -> None:
    images, text = write_grids(tmp_path / "images"), write_run(tmp_path / "text")
    for several in ([text, images], [images, images]):
        with pytest.raises(DataError, match="cannot be shown beside others. Fix: name it alone"):
            write_page(several, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(DataError, match="cannot be shown beside others. Fix: name it alone"):
        LiveServer([text, images])


def test_the_command_writes_it(tmp_path: Path) -> None:
    folder = write_grids(tmp_path / "run")
    done = CliRunner().invoke(app, ["view", "--no-browser", str(folder), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert embedded(tmp_path / "page.html")["runs"][0]["samples"]["steps"]
    assert not (folder / "report.html").exists()


def test_only_a_live_page_may_connect_and_it_gets_new_images(tmp_path: Path) -> None:
    folder = write_grids(tmp_path / "run", steps=(0, 20))
    assert "connect-src 'none'" in page(trees([folder]))
    with LiveServer([folder]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            assert _ask(server, "/", {})[0] == 200
            status, body, tag = _ask(server, "/data.json", {})
            assert [row["step"] for row in json.loads(body)["runs"][0]["samples"]["steps"]] == [0, 20]
            assert _ask(server, "/data.json", {"If-None-Match": tag})[0] == 304
            samples = Samples(folder / SAMPLES)
            samples.path(20).rename(samples.path(40))
            status, body, _ = _ask(server, "/data.json", {"If-None-Match": tag})
            assert status == 200
            assert [row["step"] for row in json.loads(body)["runs"][0]["samples"]["steps"]] == [0, 40]
        finally:
            server.shutdown()
            thread.join()


def _ask(server: LiveServer, path: str, headers: dict[str, str]) -> tuple[int, bytes, str]:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers.get("ETag", "")
    connection.close()
    return found


@pytest.mark.slow
def test_a_page_stays_below_5_mb_whatever_the_run_has_drawn(tmp_path: Path) -> None:
    folder = write_grids(tmp_path / "run", text="<wide>" * 400, prompts=320, steps=(0, 20), side=56, shown=160)
    with (folder / "states.jsonl").open("a") as file:
        for step in range(21, 2000):
            file.write(json.dumps({"step": step, "loss": {"distill": [random.random() for _ in range(100)]}}) + "\n")
    noise = random.Random(0)
    for name in (0, 20, TEACHER):
        path = Samples(folder / SAMPLES).path(name)
        with Image.open(path) as image:
            Image.frombytes("RGB", image.size, noise.randbytes(3 * image.width * image.height)).save(path)
    assert write_report(folder).stat().st_size < 5_000_000
    data = denoising_data(folder)
    assert data["left_out"] == "evaluations in between and some prompts"
    assert len(data["samples"]["prompts"]) == len(data["samples"]["teacher"]) > 20
    assert data["states"][-1]["step"] == 1999


@pytest.mark.parametrize("line", [{"step": 9}, {"step": 9, "loss": 5}, {"step": 9, "loss": {"distill": ["x"]}}])
def test_a_damaged_line_of_states_costs_that_line(line: dict[str, Any], tmp_path: Path) -> None:
    folder = write_grids(tmp_path / "run")
    before = denoising_data(folder)["states"]
    with (folder / "states.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert denoising_data(folder)["states"] == before


def test_damaged_prompts_of_images_are_one_sentence(tmp_path: Path) -> None:
    folder = write_grids(tmp_path / "run")
    (folder / SAMPLES / "samples.json").write_text('{"prompts": [5]}')
    with pytest.raises(DataError, match="'prompts' is no list of prompts"):
        denoising_data(folder)
