"""What a reader of the page sees, in a real browser: at two widths, light and dark."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from opd.report.live import LiveServer
from opd.report.page import write_page, write_report
from support.chat_run import ARABIC, CHINESE, EMOJI, QUESTION, chat_run
from support.visit import Visit
from support.written_run import row, write_run

pytestmark = pytest.mark.slow

SCREENS = [(1280, False), (1280, True), (390, False), (390, True)]
screens = pytest.mark.parametrize(("width", "dark"), SCREENS)
both = pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])


def rewritten(folder: Path, *, evals: list[dict[str, float]], train: dict[str, float] | None = None) -> Path:
    """A written run with these evaluations, one a step, and this training step at each."""
    lines: list[dict[str, Any]] = [{"step": step, "eval": metrics} for step, metrics in enumerate(evals)]
    lines += [{"step": step, "train": train or {"loss": 1.0}} for step in range(1, len(evals))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@contextmanager
def served(*folders: Path) -> Iterator[LiveServer]:
    with LiveServer(folders) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def chat_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student that thinks, calls tools and answers in Chinese, Arabic, emoji and hidden marks."""
    return (chat_run(tmp_path_factory.mktemp("chat")) / "report.html").as_uri()


@screens
def test_a_page_fits_its_width(browser: Any, chat_page: str, width: int, dark: bool) -> None:
    with Visit(browser, chat_page, width=width, dark=dark) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
        assert visit.errors == []


@both
def test_better_than_the_start_is_never_red(browser: Any, tmp_path: Path, width: int, dark: bool) -> None:
    run = write_run(tmp_path / "run", steps=(0, 1, 2))
    kl = [{"teacher/reverse_kl": v, "accuracy": a} for v, a in ((0.271, 0.4), (0.220, 0.5), (0.246, 0.6))]
    for metrics, invalid in zip(kl, (0.1, 0.2, 0.3), strict=True):
        metrics["invalid_call_rate"] = invalid
    with Visit(browser, write_report(rewritten(run, evals=kl)).as_uri(), width=width, dark=dark) as visit:
        colour = 'getComputedStyle(document.querySelector("{} .tile-now")).color'
        name = "[data-metric='{}']"
        better, worse = (
            visit.page.evaluate(colour.format(name.format(n))) for n in ("teacher/reverse_kl", "invalid_call_rate")
        )
        probe = "(() => {{ const e = document.createElement('i'); e.style.color = 'var(--{})'; document.body.append(e);"
        good, alarm = (
            visit.page.evaluate(f"{probe.format(n)} return getComputedStyle(e).color; }})()") for n in ("good", "alarm")
        )
        assert (better, worse) == (good, alarm)
        tile = "[data-metric='teacher/reverse_kl']"
        assert "from 0.271 · better · best 0.220 at step 1" in visit.text(f"{tile} .tile-was")
        grey = visit.page.evaluate(f'getComputedStyle(document.querySelector("{tile} .tile-was")).color')
        assert grey == visit.page.evaluate("getComputedStyle(document.querySelector('.tile-name')).color")


def test_closer_to_the_teacher_is_a_grey_note_where_accuracy_fell(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(0, 1, 2))
    kl = [{"teacher/reverse_kl": v, "accuracy": a} for v, a in ((0.271, 0.9), (0.220, 0.5), (0.246, 0.4))]
    with Visit(browser, write_report(rewritten(run, evals=kl)).as_uri()) as visit:
        tile = visit.page.locator("[data-metric='teacher/reverse_kl']")
        assert tile.get_attribute("class") == "tile "
        assert "from 0.271 · closer to the teacher · closest 0.220 at step 1" in tile.inner_text()
        assert "bad" in visit.page.get_attribute("[data-metric='accuracy']", "class").split()
        assert visit.text(".of-tiles").startswith("On held-out prompts")


@pytest.mark.parametrize("stopped", [False, True])
def test_the_folder_of_the_best_weights_is_named(browser: Any, tmp_path: Path, stopped: bool) -> None:
    run = write_run(tmp_path / "run", steps=(0, 1, 2))
    evals = [{"accuracy": 0.2}, {"accuracy": 0.9}, {"accuracy": 0.7}]
    result = {"before": evals[0], "after": evals[1 if stopped else 2], "best": evals[1]}
    (run / "result.json").write_text(json.dumps(result))
    with Visit(browser, write_report(rewritten(run, evals=evals)).as_uri()) as visit:
        rest = "run." if stopped else "run/checkpoints/best; the last are in run."
        assert visit.text(".lede").endswith(f"The best weights, of step 1, are in the folder {rest}")
        folders = visit.page.locator(".lede code").all_inner_texts()
        assert folders == (["run"] if stopped else ["run/checkpoints/best", "run"])


def test_a_good_result_with_an_error_says_so_and_a_weak_teacher_has_its_evidence(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(0,))
    line = row(0, 0, "word", 8)
    line["terms"][0]["loss"] = [2.0] * len(line["terms"][0]["loss"])
    line["terms"][0]["teachers"][0]["top"] = [["another", "other"]] * len(line["terms"][0]["loss"])
    (run / "rollouts.jsonl").write_text(json.dumps(line) + "\n")
    rewritten(run, evals=[{"accuracy": 0.2, "teacher_accuracy": 0.1}, {"accuracy": 0.9}])
    with Visit(browser, write_report(run).as_uri()) as visit:
        assert "to 90.0% in 1 steps. But the page found an error: see below." in visit.text(".lede")
        assert "largest total loss first" in visit.text(".objections")
        link = visit.page.locator(".signs a")
        assert link.inner_text() == visit.text(".objections h3")
        assert visit.page.locator(link.get_attribute("href")).get_attribute("class") == "changes objections"
        assert visit.errors == []
    rewritten(run, evals=[{"accuracy": 0.2}, {"accuracy": 0.9}])
    with Visit(browser, write_report(run).as_uri()) as visit:
        assert "see below" not in visit.text(".lede")


@both
def test_the_page_opens_at_the_best_weights(browser: Any, tmp_path: Path, width: int, dark: bool) -> None:
    run = write_run(tmp_path / "run", steps=(0, 1, 2))
    rewritten(run, evals=[{"accuracy": 0.2}, {"accuracy": 0.9}, {"accuracy": 0.7}])
    with Visit(browser, write_report(run).as_uri(), width=width, dark=dark) as visit:
        assert visit.text('#steps [aria-pressed="true"]') == "1 best"
        assert "step 1" in visit.text("#text .facts")


def test_a_live_page_opens_at_the_newest_weights_and_follows_them(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(0, 1, 2))
    rewritten(run, evals=[{"accuracy": 0.2}, {"accuracy": 0.9}, {"accuracy": 0.7}])

    def grow(step: int) -> None:
        with (run / "rollouts.jsonl").open("a") as file:
            file.write(json.dumps(row(step, 0, "word", 8)) + "\n")

    with served(run) as server, Visit(browser, server.url) as visit:
        assert visit.text('#steps [aria-pressed="true"]') == "2"
        visit.page.wait_for_timeout(2500)  # the first answer is what the page has
        grow(3)
        visit.page.locator('#steps [aria-pressed="true"]:has-text("3")').wait_for()
        visit.page.click("#text .tok.own >> nth=1")
        grow(4)
        visit.page.locator('#steps .chip:has-text("4")').wait_for()
        assert visit.text('#steps [aria-pressed="true"]') == "3"  # a selected token stays
        assert visit.page.locator(".tok.chosen").count() == 1
        assert visit.errors == []


@both
def test_a_prompt_shows_its_end_and_folds_system_and_tools(
    browser: Any, chat_page: str, width: int, dark: bool
) -> None:
    with Visit(browser, chat_page, width=width, dark=dark) as visit:
        page = visit.page
        folds = page.locator("#text .prompt > details")
        assert folds.count() == 3
        assert [folds.nth(n).get_attribute("open") for n in range(3)] == [None] * 3
        assert "add, weather, hang, die, fail" in folds.nth(1).inner_text()
        assert page.evaluate("""() => { const box = document.querySelector("#text .prompt > .scroll");
            const last = [...box.querySelectorAll(".block.user")].at(-1).getBoundingClientRect();
            const frame = box.getBoundingClientRect();
            return box.scrollTop > 0 && last.top >= frame.top && last.bottom <= frame.bottom + 1; }""")
        assert QUESTION in visit.text("#text .prompt > .scroll")
        assert "long" in page.get_attribute("#text .prompt > .scroll", "class")
        folds.nth(0).locator("summary").click()
        assert "You are a careful assistant." in folds.nth(0).locator(".said").inner_text()
        folds.nth(2).locator("summary").click()
        assert "<|im_start|>" in folds.nth(2).locator(".said").inner_text()


@both
def test_a_turn_has_hint_thought_call_finding_and_result_in_one_place(
    browser: Any, chat_page: str, width: int, dark: bool
) -> None:
    with Visit(browser, chat_page, width=width, dark=dark) as visit:
        turn = visit.page.locator("#text .turn").first
        kinds = turn.evaluate("turn => [...turn.children].map(part => part.className.split(' ').at(-1))")
        assert kinds == ["turn-name", "hint", "thought", "call", "found", "tool"]
        whose = turn.locator(".who").all_inner_texts()
        assert whose[1:] == ["thinking", "tool call", "environment", "tool result"]
        assert whose[0].startswith("only the teacher reads")
        assert "unknown tool" in turn.locator(".found").inner_text()
        assert "no such tool: multiply" in turn.locator(".block.tool").inner_text()
        last = visit.page.locator("#text .turn").last
        assert last.evaluate("turn => turn.lastElementChild.className") == "block student text"


@both
def test_a_call_out_of_the_loss_is_readable_and_its_hint_says_what_it_is_about(
    browser: Any, tmp_path: Path, width: int, dark: bool
) -> None:
    run = write_run(tmp_path / "run", rollouts=1, steps=(0,))
    line = row(0, 0, "word", 8) | {"finish": "turns"}
    line["events"] += [{"kind": "too_long", "span": [0, 8], "detail": {"finish": "turns"}}]
    line["terms"][0]["contexts"][0]["instead_of"] = ""
    (run / "rollouts.jsonl").write_text(json.dumps(line) + "\n")
    with Visit(browser, write_report(run).as_uri(), width=width, dark=dark) as visit:
        decorated = "getComputedStyle(document.querySelector('#text .tok.masked')).textDecorationLine"
        assert visit.page.evaluate(decorated) == "none"
        assert visit.text(".hint .instead") == "about: word0word1word2"
        facts = visit.page.locator("#text .facts .fact").all_inner_texts()
        assert facts.count("cut off at the turn limit") == 1
        assert "too long" not in facts
        assert visit.page.locator("#text .found .said").all_inner_texts() == ["word", "cut off at the turn limit"]


@both
def test_chinese_arabic_and_emoji_read_as_people_write_them(
    browser: Any, chat_page: str, width: int, dark: bool
) -> None:
    with Visit(browser, chat_page, width=width, dark=dark) as visit:
        page = visit.page
        answer = "#text .turn:last-child .said"
        for number, text in enumerate((CHINESE, ARABIC, EMOJI)):
            page.click(f"#list li:nth-child({number + 1}) .item")
            assert visit.text(answer).removesuffix("<|im_end|>") == text
        page.click("#list li:nth-child(2) .item")
        begin, stop = (
            page.evaluate(f"document.querySelectorAll('{answer} .tok')[{n}].getBoundingClientRect().x") for n in (0, 6)
        )
        assert begin > stop  # from right to left
        page.click("#list li:nth-child(4) .item")
        marks = page.locator(f"{answer} bdi.mark-control")
        assert marks.all_inner_texts() == ["⟨U+202E⟩"]
        assert "eerht" in visit.text(answer)

        # A character of three tokens is one span; the panel says which bytes each holds.
        page.click("#list li:nth-child(1) .item")
        page.click(f"{answer} .tok >> nth=0")
        assert visit.text("#panel .big") == CHINESE[0]
        chips = page.locator("#panel .bytes .chip")
        assert chips.all_inner_texts() == ["E7", "AD", "94"]
        assert page.locator("#panel .likely .mine code").first.inner_text() == "⟨94⟩"
        position = visit.text("#panel .panel-head .note")
        chips.nth(0).click()
        assert visit.text("#panel .panel-head .note") != position
        assert page.locator("#panel .likely .mine code").first.inner_text() == "⟨E7⟩"
        assert visit.errors == []


@both
def test_small_learning_rates_are_readable(browser: Any, chat_page: str, width: int, dark: bool) -> None:
    with Visit(browser, chat_page, width=width, dark=dark) as visit:
        rate = visit.page.locator("#charts figure:has(#chart-learning-rate) .key-item b")
        assert rate.inner_text() in ("1e-6", "2e-7")
        assert "learning rate 1e-6" in visit.text(".took")


@pytest.mark.parametrize("dark", [False, True])
def test_the_sheet_of_a_small_screen_never_covers_its_token(browser: Any, chat_page: str, dark: bool) -> None:
    covered = """() => { const token = document.querySelector(".tok.chosen").getBoundingClientRect();
        const sheet = document.querySelector("#panel").getBoundingClientRect();
        const head = document.querySelector(".top").getBoundingClientRect();
        return !(token.bottom <= sheet.top && token.top >= head.bottom); }"""
    with Visit(browser, chat_page, width=390, dark=dark) as visit:
        page = visit.page
        page.emulate_media(reduced_motion="reduce")
        for _ in range(3):
            page.click("#worst") if page.locator("#panel.open").count() == 0 else page.keyboard.press("n")
            assert not page.evaluate(covered)
        page.keyboard.press("ArrowRight")
        assert not page.evaluate(covered)
        page.keyboard.press("Escape")
        last = page.locator("#text .turn:last-child .tok.own").last
        last.click()
        assert not page.evaluate(covered)
        assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--sheet')") != "0px"


def changed(folder: Path, *, before: float, after: float, teacher: str) -> Path:
    """A run in which training changed one token's probability, and the teacher prefers a token there."""
    run = write_run(folder, tokens=2, rollouts=1, steps=(0,))
    line = row(0, 0, "word", 2)
    line["student"] |= {"logprob": [before] * 2, "before": [before] * 2}
    line["terms"][0]["teachers"][0]["top"] = [[teacher, "other"]]
    later = {"step": 1, "of": "after", "about": [0, "eval", 0], "logprob": [after] * 2}
    (run / "rollouts.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(later) + "\n")
    return run


@both
def test_the_table_of_changes_has_context_meanings_and_nothing_without_a_reason(
    browser: Any, tmp_path: Path, width: int, dark: bool
) -> None:
    told = changed(tmp_path / "told", before=-0.1, after=-4.0, teacher="better")
    with Visit(browser, write_report(told).as_uri(), width=width, dark=dark) as visit:
        assert "better" in visit.text(".minds tbody tr")
        assert visit.page.locator(".minds .in-context").count() == 1
        heads = visit.page.locator(".minds th").all_inner_texts()
        assert visit.page.locator(".minds .meanings b").all_inner_texts() == heads
        beyond = "all => all.filter(box => box.scrollWidth > box.clientWidth).length"
        assert visit.page.eval_on_selector_all(".pairs .scroll-x, .minds th, .objections th", beyond) == 0
        visit.page.click(".minds .token-link")
        assert visit.page.locator(".tok.chosen").count() == 1
    noise = changed(tmp_path / "noise", before=-0.1, after=-4.0, teacher="word0")  # the teacher prefers the same token
    with Visit(browser, write_report(noise).as_uri(), width=width, dark=dark) as visit:
        assert visit.page.locator(".minds").count() == 0


@both
def test_the_page_says_who_took_part_and_where_the_time_went(
    browser: Any, experts_run: Path, width: int, dark: bool
) -> None:
    with Visit(browser, (experts_run / "report.html").as_uri(), width=width, dark=dark) as visit:
        facts = visit.text(".took")
        for name in ("math-teacher", "math-biased"):
            assert f"{name}: nano/{name}, on prompts of math" in facts
            assert visit.page.locator(f".took tbody tr:has-text('{name}')").count() == 1
        assert visit.page.evaluate(
            "(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.took .scroll-x'))"
        )
        assert "scored by math-teacher" in visit.text("#text .facts")
        shares = visit.page.locator(".time-keys b").all_inner_texts()
        assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=0.5)
        assert visit.page.locator(".time-keys li").all_inner_texts()[0].startswith("rollouts")


def test_lora_and_servers_are_among_who_took_part(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    author = {"type": "http", "url": "http://localhost:8000/v1", "model": "critic"}
    settings(run, student="my/model", lora={"rank": 16}, teacher={"view": {"type": "hint", "author": author}})
    with Visit(browser, write_report(run).as_uri()) as visit:
        facts = visit.text(".took")
        assert "adapters of rank 16 are trained (LoRA)" in facts
        assert "http (critic, http://localhost:8000/v1)" in facts
        assert "http://localhost:8000/v1 (teacher.view.author.url)" in facts


@screens
def test_runs_are_compared(browser: Any, tmp_path: Path, width: int, dark: bool) -> None:
    runs = [write_run(tmp_path / name, steps=(0, 1, 2)) for name in ("one", "two")]
    timed = {"loss": 0.5, "tokens": 1000.0, "rollout_s": 1.0, "teacher_s": 0.5, "update_s": 0.5}
    accuracies = ([0.2, 0.9, 0.7], [0.2, 0.5, 0.8])
    for run, values, rate in zip(runs, accuracies, (1e-6, 5e-6), strict=True):
        rewritten(run, evals=[{"accuracy": value} for value in values], train=timed)
        settings(run, optimizer={"lr": rate, "steps": 2}, out=str(run), student=f"{run.name}/{'long' * 12}")
    with Visit(browser, write_page(runs, tmp_path / "both.html").as_uri(), width=width, dark=dark) as visit:
        page = visit.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cells = page.locator(".differing tbody tr:has-text('optimizer.lr') td").all_inner_texts()
        assert page.locator(".differing tbody th").all_inner_texts() == ["optimizer.lr", "student"]
        assert [float(cell) for cell in cells] == [1e-6, 5e-6]
        beyond = "all => all.filter(box => box.scrollWidth > box.clientWidth).length"
        assert page.eval_on_selector_all("#short .scroll-x, #short td", beyond) == 0  # every run's values are in view
        reached = page.locator(".reached tbody tr:has-text('correct answers') td").all_inner_texts()
        assert "70.0%" in reached[0]
        assert "best 90.0% at 1" in reached[0]
        assert "80.0%" in reached[1]
        # Each run at its own best weights.
        articles = page.locator("#text article")
        assert "step 1" in articles.nth(0).locator(".facts").inner_text()
        assert "step 2" in articles.nth(1).locator(".facts").inner_text()
        page.click("#steps .chip >> nth=0")
        assert all("step 0" in articles.nth(n).locator(".facts").inner_text() for n in (0, 1))
        heads = "#charts figure:has(#chart-loss) .values-of th[scope=col]"
        for name, last in (("tokens", "2000"), ("seconds", "4.000")):
            page.click(f"#charts [data-axis={name}]")
            assert page.get_attribute(f"#charts [data-axis={name}]", "aria-pressed") == "true"
            assert (
                page.locator(heads).first.text_content() == {"tokens": "tokens", "seconds": "seconds of training"}[name]
            )
            rows = page.locator("#charts figure:has(#chart-loss) .values-of tbody th").all_text_contents()
            assert rows[-1] == last
        assert page.locator(".plot canvas").count() >= 2
        assert visit.errors == []


@both
def test_a_page_before_its_run_says_so_and_becomes_the_runs_page(
    browser: Any, tmp_path: Path, width: int, dark: bool
) -> None:
    folder = tmp_path / "runs" / ("long_name_" * 12)
    with served(folder) as server, Visit(browser, server.url, width=width, dark=dark) as visit:
        page = visit.page
        assert visit.text("h1") == "Waiting for a run to begin"
        assert str(folder) in visit.text("#short")
        assert "the folder does not exist yet" in visit.text("#short")
        assert visit.text("#live") == "waiting"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        folder.mkdir(parents=True)
        page.get_by_text("no run has begun in it").wait_for()
        folder.rmdir()
        write_run(folder)
        page.locator("#text .tok").first.wait_for()
        assert page.locator("#live").inner_text() in ("live", "finished")
        shutil.rmtree(folder)
        page.get_by_text("the folder does not exist yet").wait_for()
        assert visit.errors == []


def test_a_page_before_its_pipeline_becomes_the_pipelines_page(
    browser: Any, pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    with served(folder) as server, Visit(browser, server.url) as visit:
        assert str(folder) in visit.text("#short")
        shutil.copytree(pipeline_folder, folder)
        visit.page.locator('[data-stage="two"]').wait_for()
        visit.page.click('[data-stage="one"] a')
        assert visit.page.url == f"{server.url}stage/one/"
        assert visit.errors == []


def test_a_pipeline_is_followed_with_its_stages(browser: Any, pipeline_folder: Path) -> None:
    path = pipeline_folder / "pipeline.json"
    whole = path.read_text()
    tree = json.loads(whole)
    tree["stages"]["two"]["state"] = "running"
    path.write_text(json.dumps(tree))
    try:
        with served(pipeline_folder) as server, Visit(browser, server.url) as visit:
            page = visit.page
            assert "…" in visit.text('[data-stage="two"] .sign')
            assert visit.text("#live") == "live"
            page.wait_for_timeout(2500)
            path.write_text(whole)
            page.locator('[data-stage="two"].done').wait_for()
            page.locator('#live:has-text("finished")').wait_for()
            page.click('[data-stage="one"] a')
            assert page.url == f"{server.url}stage/one/"
            assert page.locator("#text .tok").count() > 0
            assert page.locator("#live").is_visible()
            page.wait_for_timeout(2500)
            assert any(url == f"{server.url}stage/one/data.json" for url in visit.asked)
            assert all(url.startswith((server.url, "data:")) for url in visit.asked)
            assert visit.errors == []
    finally:
        path.write_text(whole)
