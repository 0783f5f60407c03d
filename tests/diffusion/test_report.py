"""Sample grids of real runs of tiny pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import opd
from opd.diffusion.models import load
from opd.diffusion.report import Grids, by_state, references
from opd.evaluation.evaluate import SEED
from opd.output.callbacks import RunStart
from opd.output.run_log import RunLog
from opd.report.denoising import denoising_data
from opd.report.overview import Block, overview, wrapped
from opd.report.samples import SHOWN, TEACHER, Samples
from opd.types import Prompt
from support.families import read_denoising
from support.report_pipelines import run_file

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in ``out``, its models and prompts beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("grids")
    opd.train(run_file(folder))
    return folder


def test_every_evaluation_writes_a_strip_of_the_same_prompts(folder: Path) -> None:
    samples = Samples(folder / "out" / "samples")
    assert samples.steps == [0, 2, 4]
    assert [prompt["domain"] for prompt in samples.prompts] == ["disc", "square", "disc"]
    strips = {name: samples.images(name) for name in (0, 4, TEACHER)}
    assert all(len(strip) == 3 for strip in strips.values())
    assert {image.size for strip in strips.values() for image in strip} == {(64, 64)}
    whole = {name: b"".join(p.tobytes() for p in strip) for name, strip in strips.items()}
    assert len(set(whole.values())) == 3


def test_a_strip_shows_the_images_of_the_weights(folder: Path, tmp_path: Path) -> None:
    from opd.axes.base import Objects
    from opd.diffusion.evaluation import decoded_images
    from opd.diffusion.images import to_pixels
    from opd.diffusion.run import DenoisingRun

    config = read_denoising({**run_file(folder), "student": str(folder / "out")})
    run = DenoisingRun.load(config, Objects())
    grids = run.recorder(run.assemble(RunLog(tmp_path / "metrics.jsonl")))
    assert isinstance(grids, Grids)
    drawn = decoded_images(run.student, grids.student.rollout(grids.prompts, SEED))
    for image, kept in zip(drawn, Samples(folder / "out" / "samples").images(4), strict=True):
        small = np.asarray(kept)[::8, ::8]
        assert np.abs(small.astype(int) - to_pixels(image)).max() <= 1
        assert (np.asarray(kept) == small.repeat(8, 0).repeat(8, 1)).all()


def test_sample_grids_do_not_change_the_run(folder: Path) -> None:
    opd.train(run_file(folder, report=False, out=str(folder / "plain")))
    assert not (folder / "plain" / "samples").exists()
    assert (folder / "plain" / WEIGHTS).read_bytes() == (folder / "out" / WEIGHTS).read_bytes()


def test_sample_grids_change_neither_the_global_generator_nor_the_mode(folder: Path, tmp_path: Path) -> None:
    from opd.axes.base import Objects
    from opd.diffusion.run import DenoisingRun

    run = DenoisingRun.load(read_denoising({**run_file(folder), "out": str(tmp_path)}), Objects())
    loop = run.assemble(RunLog(tmp_path / "metrics.jsonl"))
    grids = run.recorder(loop)
    assert grids
    grids.start(RunStart(tmp_path, 0, loop.steps, evaluates=loop.evaluate is not None))
    run.student.model.train()
    before = torch.get_rng_state()
    grids.evaluation(0, {})
    assert run.student.model.training
    assert torch.equal(before, torch.get_rng_state())
    assert Samples(tmp_path / "samples").steps == [0]


class Killed:
    """Kills the run after a step."""

    def __init__(self, step: int) -> None:
        self.last = step

    def start(self, run: Any) -> None: ...

    def step(self, step: int, metrics: Any) -> None:
        if step == self.last:
            raise KeyboardInterrupt

    def evaluation(self, step: int, metrics: Any) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None: ...

    def stop(self) -> None: ...


def test_a_resumed_run_keeps_its_strips(folder: Path, tmp_path: Path) -> None:
    config, out = run_file(folder, out=str(tmp_path / "out")), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        opd.train(config, callbacks=[Killed(3)])
    samples = Samples(out / "samples")
    assert samples.steps == [0, 2]
    samples.write(3, Image.new("RGB", (9, 9)))  # of a step that the checkpoint does not know
    opd.train(config, resume=True)
    whole = folder / "out"
    assert samples.steps == [0, 2, 4]
    for name in ("000000", "000002", "000004", "teacher", "overview"):
        file = Path("samples") / f"{name}.png"
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert (out / "states.jsonl").read_text() == (whole / "states.jsonl").read_text()


def test_a_resumed_run_with_other_prompts_deletes_the_old_strips(folder: Path, tmp_path: Path) -> None:
    config, out = run_file(folder, out=str(tmp_path / "out")), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        opd.train(config, callbacks=[Killed(3)])
    opd.train({**config, "report": {"prompts": 2}}, resume=True)
    samples = Samples(out / "samples")
    assert samples.steps == [4]
    assert len(samples.images(4)) == len(samples.images(TEACHER)) == 2


def test_states_hold_the_losses_of_the_next_step(folder: Path) -> None:
    out = folder / "out"
    lines = lines_of(out / "states.jsonl")
    assert [line["step"] for line in lines] == [0, 2, 3]  # the evaluations' weights, and the last that were trained
    losses = {line["step"]: line["train"]["distill"] for line in lines_of(out / "metrics.jsonl") if "train" in line}
    for line in lines:
        assert len(line["loss"]["distill"]) == 3
        assert sum(line["loss"]["distill"]) / 3 == pytest.approx(losses[line["step"] + 1], rel=1e-5)


def test_a_state_of_weight_0_has_no_loss(folder: Path, tmp_path: Path) -> None:
    loss = {"step_weights": [1.0, 0.0, 1.0]}
    opd.train(run_file(folder, loss=loss, out=str(tmp_path / "out")))
    for line in lines_of(tmp_path / "out" / "states.jsonl"):
        assert [mean is None for mean in line["loss"]["distill"]] == [False, True, False]


def test_without_held_out_prompts_the_training_prompts_are_shown(folder: Path, tmp_path: Path) -> None:
    opd.train(run_file(folder, eval={"every": 2}, out=str(tmp_path / "out")))
    assert Samples(tmp_path / "out" / "samples").steps == [0, 2, 4]


def test_a_run_on_noised_images_has_strips_but_no_states(folder: Path, tmp_path: Path) -> None:
    more = {
        "rollout": {"prompts_per_step": 4, "steps": 3, "source": {"type": "images", "of": "teacher"}},
        "loss": {"signal": "image", "divergence": "velocity"},
        "out": str(tmp_path / "out"),
    }
    opd.train(run_file(folder, **more))
    assert Samples(tmp_path / "out" / "samples").steps == [0, 2, 4]
    assert not (tmp_path / "out" / "states.jsonl").exists()
    assert denoising_data(tmp_path / "out")["states"] == []


def test_by_state_is_the_mean_loss_of_each_state(folder: Path, tmp_path: Path) -> None:
    from opd.axes.base import Objects
    from opd.diffusion.run import DenoisingRun

    run = DenoisingRun.load(read_denoising(run_file(folder)), Objects())
    loop = run.assemble(RunLog(tmp_path / "metrics.jsonl"))
    rollouts = run.config.rollout.source.build(run).rollout(run.prompts[:2], 0)
    (said,) = loop.score(rollouts)
    said.loss_T.copy_(10 * said.signal.position_T + said.signal.rollout_T)
    assert by_state(said, rollouts) == [0.5, 10.5, 20.5]
    said.loss_T[said.signal.position_T == 1] = torch.nan
    assert by_state(said, rollouts) == [0.5, None, 20.5]


def test_reference_images_are_padded_to_squares() -> None:
    images = [Image.new("RGB", size, "crimson") for size in ((16, 16), (200, 100), (30, 90))]
    strip = references([Prompt(id=str(n), text="x", data={"image": image}) for n, image in enumerate(images)])
    assert strip.size == (2 + 3 * 202, 204)
    assert strip.getpixel((2, 2)) == strip.getpixel((2 + 202, 2 + 100)) == (220, 20, 60)
    assert strip.getpixel((2 + 202, 4)) == (255, 255, 255)  # beside a wide one


def test_the_images_that_the_teacher_sees_are_saved(folder: Path, tmp_path: Path) -> None:
    from opd.axes.base import Objects
    from opd.diffusion.run import DenoisingRun

    run = DenoisingRun.load(read_denoising({**run_file(folder), "out": str(tmp_path)}), Objects())
    loop = run.assemble(RunLog(tmp_path / "metrics.jsonl"))
    own = run.recorder(loop)
    assert own
    shown = [Prompt(id="a", text="a red one", data={"image": Image.new("RGB", (20, 20), "crimson")})]
    grids = Grids(
        folder=tmp_path,
        model=run.student,
        student=own.student,
        teacher=None,
        prompts=run.prompts,
        number=2,
        loop=loop,
        shown=shown,
    )
    (tmp_path / "run.json").write_text(json.dumps({"family": "diffusion"}))
    grids.start(RunStart(tmp_path, 0, loop.steps, evaluates=loop.evaluate is not None))
    grids.evaluation(0, {})
    grids.stop()
    data = denoising_data(tmp_path)["samples"]
    assert [prompt["text"] for prompt in data["references"]] == ["a red one"]
    assert len(data["shown"]) == 1
    assert data["teacher"] == []
    samples = Samples(tmp_path / "samples")
    assert samples.images(SHOWN)[0].getpixel((30, 30)) == (220, 20, 60)
    plain = 10 + 17 + 6 + 128 + 10  # a heading's line and a row
    with Image.open(tmp_path / "samples" / "overview.png") as image:
        assert image.height == 2 * plain


def test_the_overview_has_a_row_per_strip(folder: Path) -> None:
    with Image.open(folder / "out" / "samples" / "overview.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    samples = Samples(folder / "out" / "samples")
    rows = [samples.images(name) for name in (0, 2, 4, TEACHER)]
    top = pixels.shape[0] - 4 * 138
    for row, strip in enumerate(rows):
        for column, image in enumerate(strip):
            x, y = 116 + column * 138, top + row * 138
            expected = np.asarray(image.resize((128, 128), Image.Resampling.NEAREST))
            assert (pixels[y : y + 128, x : x + 128] == expected).all()


def test_after_a_collapse_the_overview_ends_with_the_kept_weights(folder: Path, tmp_path: Path) -> None:
    from opd.axes.base import Objects
    from opd.diffusion.run import DenoisingRun

    run = DenoisingRun.load(read_denoising({**run_file(folder), "out": str(tmp_path)}), Objects())
    loop = run.assemble(RunLog(tmp_path / "metrics.jsonl"))
    grids = run.recorder(loop)
    assert grids
    (tmp_path / "run.json").write_text(json.dumps({"family": "diffusion"}))
    grids.start(RunStart(tmp_path, 0, loop.steps, evaluates=loop.evaluate is not None))
    for step in (0, 2, 4, 6):
        grids.evaluation(step, {})
    loop.state.stopped_by, loop.state.best, loop.state.best_step = "collapse", {"distance": 1.0}, 4
    grids.finish()
    (block,) = grids._blocks()
    assert [label for label, _ in block.rows] == ["before, step 0", "in between, step 2", "after, step 4", "teacher"]


def test_long_headings_are_cut() -> None:
    assert wrapped("ab cd ef", 5, len, 4) == ["ab cd", "ef"]
    assert wrapped("abcdefgh", 3, len, 4) == ["abc", "def", "gh"]
    assert wrapped("a b c d e", 1, len, 2) == ["a", "…"]
    assert wrapped("", 5, len, 4) == [""]
    image = Image.new("RGB", (300, 150))
    sheet = overview([Block(["图画\u2028 \x00<b>", "x " * 400], [("before", [image, image])])])
    assert sheet.width == 116 + 2 * 266 + 10


def test_the_student_in_the_folder_loads(folder: Path) -> None:
    assert load(str(folder / "out"), key="student").shape == (3, 8, 8)
