"""The pages in a real browser: interaction, themes, widths, security."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from opd.report.data import run_data
from opd.report.live import LiveServer
from opd.report.page import write_page, write_report
from opd.report.samples import SAMPLES, Samples
from support.visit import Visit
from support.written_grids import strip, write_grids
from support.written_run import HOSTILE, write_run

pytestmark = pytest.mark.slow


def test_the_page_of_a_run(browser: Any, hint_run: Path) -> None:
    address = (hint_run / "report.html").as_uri()
    with Visit(browser, address) as visit:
        page = visit.page
        assert "hints right above the mistake" in visit.text("h1").lower()
        assert "Accuracy on held-out prompts" in visit.text(".lede")

        # The page opens at the last weights, since none were better; step 0 has the mistakes.
        assert "best" in visit.text('#steps [aria-pressed="true"]')
        page.click("#steps .chip >> nth=0")

        # Colours.
        page.click("#worst")
        chosen = page.locator(".tok.chosen")
        assert chosen.count() == 1
        strength = [
            float(v)
            for v in page.eval_on_selector_all("#text .tok.own", "all => all.map(t => t.style.getPropertyValue('--v'))")
        ]
        assert max(strength) > 0.5
        page.click('[data-quantity="entropy"]')
        other = [
            float(v)
            for v in page.eval_on_selector_all("#text .tok.own", "all => all.map(t => t.style.getPropertyValue('--v'))")
        ]
        assert other != strength
        page.keyboard.press("3")
        assert page.get_attribute('[data-quantity="gap"]', "aria-pressed") == "true"
        page.keyboard.press("1")

        # The panel has the recorded values of the token.
        panel = visit.text("#panel")
        assert "Likeliest tokens" in panel
        assert "before training (step 0)" in panel
        assert "In the loss: distill" in panel
        assert page.locator("#panel .column").count() >= 2

        # The hint is directly above its span.
        assert "available tools" in visit.text(".hint")
        assert page.locator(".turn > .hint + .block.student").count() >= 1

        # Keyboard: the next token, then close.
        before = page.get_attribute(".tok.chosen", "data-p")
        page.keyboard.press("ArrowRight")
        assert page.get_attribute(".tok.chosen", "data-p") != before
        page.keyboard.press("Escape")
        assert page.locator(".tok.chosen").count() == 0

        # The same prompt at another step.
        page.select_option("#filter-of", "eval")
        page.click("#list .item")
        page.click("#text .facts")
        name = visit.text(".facts b")
        page.keyboard.press("]")
        assert visit.text('#steps [aria-pressed="true"]') == "2"
        assert visit.text(".facts b") == name

        page.select_option("#filter-of", "")

        # Search and filters.
        page.click('#steps button:has-text("all")')
        everything = page.locator("#list .item").count()
        page.select_option("#filter-event", "unknown_tool")
        noticed = page.locator("#list .item").count()
        assert 0 < noticed < everything
        page.select_option("#filter-reward", "right")
        assert page.locator("#list .item .reward.wrong").count() == 0
        page.select_option("#filter-reward", "")
        page.select_option("#filter-event", "")
        page.fill("#filter-text", "no such text anywhere")
        assert page.locator("#list .item").count() == 0
        page.fill("#filter-text", "error")
        assert 0 < page.locator("#list .item").count() < everything
        page.fill("#filter-text", "")
        page.select_option("#filter-sort", "worst")
        keys = page.eval_on_selector_all("#list .item", "all => all.map(i => i.dataset.key)")
        worst = {f"{r['step']} {r['of']} {r['n']}": _worst(r) for r in run_data(hint_run)["rollouts"]}
        ranked = [worst[key] for key in keys]
        assert ranked == sorted(ranked, reverse=True)

        # Charts and their values as tables.
        assert page.locator(".plot canvas").count() >= 8
        assert "Accuracy" in visit.text("#charts")
        page.locator(".values-of summary").first.click()
        assert page.locator(".values-of[open] td").count() > 2
        assert visit.errors == []
        assert [url for url in visit.asked if not url.startswith("data:")] == [address]


def _worst(rollout: dict[str, Any]) -> float:
    lead: dict[int, float] = {}
    for term in rollout["terms"]:
        for position, loss in zip(term["position"], term["loss"], strict=True):
            lead.setdefault(position, loss)
    return max(lead.values(), default=0.0)


def test_the_panel_shows_the_recorded_probabilities(browser: Any, math_run: Path) -> None:
    with Visit(browser, (math_run / "report.html").as_uri()) as visit:
        visit.page.click("#worst")
        position = int(visit.page.get_attribute(".tok.chosen", "data-p"))
        key = visit.page.get_attribute(".tokens", "data-key")
        rollout = next(r for r in run_data(math_run)["rollouts"] if f"{r['step']} {r['of']} {r['n']}" == key)
        loss = rollout["terms"][0]["loss"][rollout["terms"][0]["position"].index(position)]
        assert f"{loss:.{2 if loss >= 10 else 3}f}" in visit.text("#panel .term")


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_the_page_fits_every_width_and_theme(browser: Any, hint_run: Path, width: int, dark: bool) -> None:
    with Visit(browser, (hint_run / "report.html").as_uri(), width=width, dark=dark) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
        visit.page.click("#worst")
        assert visit.page.is_visible("#panel")
        visit.page.keyboard.press("Escape")
        assert visit.errors == []


def test_an_inserted_token_in_the_loss_is_an_error_on_the_page(browser: Any, hint_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(hint_run, run, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"))
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    strangers = 0
    for row in rows:
        if row["of"] in ("eval", "train") and row["terms"] and len(row["turns"]) > 1 and row["n"] == 0:
            row["turns"], gone = [row["turns"][0]], row["turns"][1:]
            counted = {p for term in row["terms"] for p in term["position"]}
            strangers += sum(p in counted for start, stop in gone for p in range(start, stop))
    (run / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Visit(browser, write_report(run).as_uri()) as visit:
        page = visit.page
        assert f"{strangers} inserted tokens are in the loss" in visit.text(".signs .alarm")
        # The page opens on a rollout with such a token, marked in text and colour.
        assert page.locator("#text .tok.stranger").count() > 0
        assert "in the loss" in visit.text("#text .fact.alarm")
        alarm = page.evaluate("getComputedStyle(document.querySelector('#text .tok.stranger')).outlineColor")
        assert alarm == page.evaluate("getComputedStyle(document.querySelector('.signs .alarm')).borderTopColor")
        assert page.locator("#list .strip .alarm").count() > 0
        page.click(".signs .token-link")
        assert "stranger" in page.get_attribute(".tok.chosen", "class")
        # No row of the colours' buttons is under the header.
        page.wait_for_function("scrollY > 0")
        header = page.locator(".top").bounding_box()
        assert page.locator("#paint .chip >> nth=0").bounding_box()["y"] >= header["y"] + header["height"]
        assert "did not generate" in visit.text("#panel")
        assert visit.errors == []


def test_the_teachers_likeliest_token_is_listed_where_it_disagrees(browser: Any, math_run: Path) -> None:
    with Visit(browser, (math_run / "report.html").as_uri()) as visit:
        assert visit.page.locator(".signs").count() == 0
        visit.page.click(".objections .token-link")
        student, preferred = (
            visit.text(f".objections {where} >> nth=0") for where in (".token-link", "td:nth-child(2)")
        )
        assert visit.text(".tok.chosen").strip() == student
        teacher = visit.page.locator("#panel .column").nth(1).locator("code").first.inner_text()
        assert teacher == preferred


def test_several_teachers_have_their_own_charts(browser: Any, experts_run: Path) -> None:
    with Visit(browser, (experts_run / "report.html").as_uri()) as visit:
        group = visit.page.locator("#charts .group")
        titles = group.locator("figcaption h3").all_inner_texts()
        assert titles[0] == "Accuracy on math"
        assert {"Divergence from each teacher", "Overlap with each teacher", "Disagreement of teachers"} <= set(titles)
        assert group.locator(".plot canvas").count() == len(titles)
        text = group.locator("figure").first.inner_text()
        assert "math-teacher" in text
        assert "math-biased does not teach math: its accuracy is" in group.locator(".events.gate").inner_text()
        first = run_data(experts_run)["eval"]["columns"]["teacher_accuracy/math/math-biased"][0]
        assert f"{100 * first:.1f}%" in text
        assert "math: math-teacher and math-biased" in group.inner_text()
        # No other chart has these metrics.
        visit.page.click("#more > summary") if visit.page.locator("#more").count() else None
        others = visit.page.locator("#charts > figure h3, #more h3").all_inner_texts()
        assert not [t for t in others if t.startswith(("teacher_accuracy", "conflict/", "teacher/reverse_kl/math"))]
        assert "The teacher math-biased was no better" in visit.text(".signs")
        assert visit.errors == []


def test_one_teacher_of_one_domain_has_no_such_charts(browser: Any, math_run: Path) -> None:
    with Visit(browser, (math_run / "report.html").as_uri()) as visit:
        assert visit.page.locator("#charts .group").count() == 0


def test_a_hostile_rollout_is_shown_as_text(browser: Any, tmp_path: Path) -> None:
    report = write_report(write_run(tmp_path / "run", text=HOSTILE))
    with Visit(browser, report.as_uri()) as visit:
        visit.page.click("#text .tok.own >> nth=1")
        visit.page.fill("#filter-text", "<img")
        assert visit.page.locator("#list .item").count() == 2
        assert "<img src=x" in visit.text(".prompt")
        assert "</script>" in visit.text("#panel")
        assert visit.page.evaluate("window.hacked") is None
        assert visit.page.locator("main img, main script").count() == 0
        assert visit.errors == []
        assert len([url for url in visit.asked if not url.startswith("data:")]) == 1


def test_the_policy_blocks_injected_markup(browser: Any, tmp_path: Path) -> None:
    report = write_report(write_run(tmp_path / "run"))
    with Visit(browser, report.as_uri()) as visit:
        visit.page.evaluate(
            """() => { const s = document.createElement('div'); s.innerHTML = `<img src="https://example.com/x.png"
            onerror="window.hacked = 1"><style>body { display: none }</style>`; document.body.append(s); }"""
        )
        blocked = visit.page.evaluate("fetch('https://example.com/').then(() => 'sent', () => 'blocked')")
        assert blocked == "blocked"
        assert visit.page.evaluate("window.hacked") is None
        assert visit.page.evaluate("getComputedStyle(document.body).display") == "block"


FRAMES = """async () => { const started = performance.now();
for (let i = 0; i < 20; i++) { scrollBy(0, 120); await new Promise(requestAnimationFrame); }
return (performance.now() - started) / 20; }"""

PAINT = """name => { const started = performance.now(); document.querySelector(`[data-quantity=${name}]`).click();
return performance.now() - started; }"""


def test_four_thousand_tokens_do_not_stutter(browser: Any, tmp_path: Path) -> None:
    # Compared with a small page at the same time, because a busy machine slows both; the median ignores single pauses.
    small = write_report(write_run(tmp_path / "small", tokens=40, rollouts=1, steps=(0,)))
    large = write_report(write_run(tmp_path / "large", tokens=4000, rollouts=1, steps=(0,)))
    with Visit(browser, small.as_uri()) as few, Visit(browser, large.as_uri()) as many:
        assert many.page.locator(".tok").count() >= 4000
        frames: dict[str, list[float]] = {"few": [], "many": []}
        for _ in range(5):
            for name, visit in (("few", few), ("many", many)):
                visit.page.bring_to_front()
                frames[name].append(visit.page.evaluate(FRAMES))
        assert median(frames["many"]) < 5 * median(frames["few"]) + 50  # ms
        painted = [many.page.evaluate(PAINT, name) for name in ("entropy", "gap", "student", "teacher", "divergence")]
        assert median(painted) < 1000 * max(median(frames["few"]) / 17, 1)  # 17 ms per frame on an idle machine


def test_two_runs_side_by_side(browser: Any, hint_run: Path, math_run: Path, tmp_path: Path) -> None:
    path = write_page([hint_run, math_run], tmp_path / "both.html")
    with Visit(browser, path.as_uri()) as visit:
        assert visit.text("h1") == "2 runs side by side"
        assert visit.page.locator(".rollout").count() == 2
        assert visit.page.locator(".plot canvas").count() >= 8
        assert visit.errors == []


def test_the_page_of_a_pipeline_links_to_its_stages(browser: Any, pipeline_folder: Path) -> None:
    with Visit(browser, (pipeline_folder / "report.html").as_uri()) as visit:
        page = visit.page
        names = page.eval_on_selector_all(".stage", "all => all.map(s => s.dataset.stage)")
        assert set(names) == {"one", "two", "three", "scores"}
        boxes = {name: page.locator(f'.stage[data-stage="{name}"]').bounding_box() for name in names}
        assert boxes["one"]["x"] + boxes["one"]["width"] < boxes["two"]["x"]
        assert boxes["two"]["x"] + boxes["two"]["width"] < boxes["scores"]["x"]
        assert boxes["two"]["y"] != boxes["three"]["y"]
        assert page.locator(".graph svg path[d]").count() == 3 + 1  # the arrow's head is also a path
        assert "failed" in visit.text('.stage[data-stage="three"]')
        assert "stage 'three':" in visit.text(".signs .alarm")
        assert "3 of 4 stages are done" in visit.text(".lede")
        assert visit.text(".measured tbody th >> nth=0") == "two"
        assert "%" in visit.text(".measured tbody td >> nth=0")
        assert visit.errors == []
        page.click('.stage[data-stage="two"] a')
        page.wait_for_url("**/two/report.html")
        assert "Accuracy" in visit.text(".lede")
        assert all(url.startswith(("file:", "data:")) for url in visit.asked)


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_the_page_of_a_pipeline_fits_every_width_and_theme(
    browser: Any, pipeline_folder: Path, width: int, dark: bool
) -> None:
    with Visit(browser, (pipeline_folder / "report.html").as_uri(), width=width, dark=dark) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
        visit.page.keyboard.press("t")
        assert visit.page.evaluate("document.documentElement.dataset.theme") == ("light" if dark else "dark")


def ground(visit: Visit, number: int = 0) -> list[int]:
    """The colour in the corner of one of the student's images."""
    found: list[int] = visit.page.evaluate(
        """async number => { const image = document.querySelectorAll("img[data-prompt]")[number];
        await image.decode();
        const canvas = document.createElement("canvas"); canvas.width = canvas.height = 9;
        const pen = canvas.getContext("2d"); pen.drawImage(image, 0, 0);
        return [...pen.getImageData(1, 1, 1, 1).data]; }""",
        number,
    )
    return found[:3]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_of_a_denoising_run(browser: Any, tmp_path: Path, width: int, dark: bool) -> None:
    report = write_report(write_grids(tmp_path / "run", prompts=8, shown=2, steps=(0, 20, 40)))
    with Visit(browser, report.as_uri(), width=width, dark=dark) as visit:
        page = visit.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert "from 20.0% to 40.0%" in visit.text(".lede >> nth=0")
        assert [visit.text(f".before-after tbody tr:first-child td >> nth={n}") for n in range(4)] == [
            "20.0%",
            "40.0%",
            "40.0%",
            "75.0%",
        ]
        assert "with guidance 1.5" in visit.text(".did")

        # The page opens on the last evaluation; buttons, slider and keys select others, and the teacher's images stay.
        teacher = page.get_attribute(".of-teacher img >> nth=0", "src")
        assert "step 40" in visit.text("#now")
        assert ground(visit) == ground(visit, 7) == [40, 40, 40]
        assert page.is_disabled("#later")
        page.click("#earlier")
        assert ground(visit) == [20, 20, 20]
        page.focus("#step")
        page.keyboard.press("Home")
        assert "before training" in visit.text("#now")
        assert page.get_attribute("#step", "aria-valuetext") == "before training"
        assert "accuracy 20.0%" in visit.text("#now")
        assert ground(visit) == [0, 0, 0]
        assert page.is_disabled("#earlier")
        page.keyboard.press("]")
        assert ground(visit) == [20, 20, 20]
        assert page.get_attribute(".of-teacher img >> nth=0", "src") == teacher
        alts = page.eval_on_selector_all("main img", "all => all.map(i => i.alt)")
        assert len(alts) == 8 + 8 + 2
        assert all("a disc of one colour" in alt for alt in alts)
        assert "after 20 steps" in alts[0]

        page.click("#images summary:has-text('All evaluations')")
        page.locator(".at-once").wait_for()
        assert page.locator(".at-once tbody tr").count() == 3 + 1
        assert page.locator(".at-once img[alt]").count() == 8 * 4
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        # The loss along the trajectory at the selected evaluation.
        assert "step 20, mean" in visit.text(".along .keys")
        assert page.locator(".along .state .is").count() == 8
        heights = page.eval_on_selector_all(".along .state .is", "all => all.map(s => s.offsetHeight)")
        assert heights[:7] == sorted(heights[:7], reverse=True)
        assert heights[7] == 0

        assert page.locator(".plot canvas").count() >= 4
        page.keyboard.press("t")
        assert page.evaluate("document.documentElement.dataset.theme") == ("light" if dark else "dark")
        assert visit.errors == []
        assert [url for url in visit.asked if not url.startswith("data:")] == [report.as_uri()]


def test_a_hostile_prompt_is_shown_as_text(browser: Any, tmp_path: Path) -> None:
    report = write_report(write_grids(tmp_path / "run", text=HOSTILE, shown=1))
    with Visit(browser, report.as_uri(), width=390) as visit:
        assert "<img src=x" in visit.text(".drawn figcaption >> nth=0")
        assert "<img src=x" in visit.page.get_attribute("img[data-prompt]", "alt")
        assert visit.page.evaluate("window.hacked") is None
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
        sources = visit.page.eval_on_selector_all("main img", "all => all.map(i => i.src)")
        assert all(source.startswith("data:image/") for source in sources)
        assert visit.errors == []
        assert len([url for url in visit.asked if not url.startswith("data:")]) == 1


def test_a_denoising_run_without_images_or_metrics_has_a_page(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"family": "diffusion"}))
    with Visit(browser, write_report(tmp_path).as_uri()) as visit:
        assert "The run is not finished." in visit.text(".lede >> nth=0")
        assert not visit.page.is_visible("#images")
        assert visit.errors == []


def test_live_images_arrive_and_the_selected_step_stays(browser: Any, tmp_path: Path) -> None:
    run = write_grids(tmp_path / "run", prompts=2, steps=(0, 20))
    with LiveServer([run]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            with Visit(browser, server.url) as visit:
                while not any(url.endswith("data.json") for url in visit.asked):
                    visit.page.wait_for_timeout(100)
                visit.page.wait_for_timeout(300)
                for step in (40, 60):
                    Samples(run / SAMPLES).write(step, strip(["teal", "teal"], 64, ground=(step,) * 3))
                    if step == 40:  # the last step stays selected until another is chosen
                        visit.page.locator("#now:has-text('step 40')").wait_for()
                        visit.page.click("#earlier")
                        visit.page.focus("#step")
                visit.page.locator("#now:has-text('2 of 4')").wait_for()
                assert ground(visit) == [20, 20, 20]
                assert visit.page.evaluate("document.activeElement.id") == "step"
                assert visit.errors == []
        finally:
            server.shutdown()
            thread.join()


def test_live_metrics_arrive_and_the_selected_token_stays(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with LiveServer([run]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            with Visit(browser, server.url) as visit:
                visit.page.click("#text .tok.own >> nth=1")
                visit.page.locator("#live:has-text('live')").wait_for()
                while not any(url.endswith("data.json") for url in visit.asked):
                    visit.page.wait_for_timeout(100)
                visit.page.wait_for_timeout(300)
                with (run / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps({"step": 7, "eval": {"accuracy": 0.875, "length": 3.0}}) + "\n")
                visit.page.locator(".lede:has-text('87.5')").wait_for()
                assert visit.page.locator(".tok.chosen").count() == 1
                assert all(url.startswith((server.url, "data:")) for url in visit.asked)
                assert visit.errors == []
        finally:
            server.shutdown()
            thread.join()
