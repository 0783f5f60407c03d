"""The documentation site, and every command on its pages and in the README."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer.main

import opd
from opd.cli import app
from opd.config import read as run_file
from opd.config.read import recipe_names
from opd.data.files import read_rows
from opd.data.rows import from_rows
from opd.pipelines import config as pipelines
from opd.pipelines.graph import build
from support.visit import Visit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(p for p in DOCS.rglob("*.md"))]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)

ELSEWHERE = ("make ", "export ", ". .venv/bin/activate")
"""Beginnings of commands other than ``opd``; targets of ``make`` are looked up in the Makefile."""

SHORT = ["optimizer.steps=2", "rollout.prompts_per_step=8", "eval.prompts.limit=8"]


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Language, file name and text of the code blocks of a page."""
    yield from BLOCK.findall(page.read_text())


def commands(page: Path) -> list[str]:
    """Every command in a page's ``sh`` blocks, and in the README's tables."""
    shown = "".join(text for language, _, text in blocks(page) if language == "sh")
    lines = [line.removeprefix(".venv/bin/") for line in shown.replace("\\\n", " ").splitlines() if line.strip()]
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")] if page == README else []
    return lines + [command for row in rows for command in re.findall(r"`(opd [^`]+)`", row)]


EVERY = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every titled block of the pages as a file, and the examples."""
    for page in PAGES:
        for _, name, text in blocks(page):
            if name:
                (tmp_path / name).write_text(text)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_pages_have_commands() -> None:
    assert len(EVERY) > 20


@pytest.mark.parametrize(("page", "command"), EVERY)
def test_every_command_on_a_page_is_accepted(page: str, command: str, beside: Path) -> None:
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif not command.startswith(ELSEWHERE):
        words = shlex.split(command)
        _check(words[words.index("-m") + 1 :] if words[0] == "torchrun" else words)


def _check(words: list[str]) -> None:
    """Parse a command like the command line, and check the run file that it names."""
    assert words[0] == "opd", f"'{words[0]}' is neither opd nor in ELSEWHERE"
    root = typer.main.get_command(app)
    given = root.commands[words[1]].make_context(f"opd {words[1]}", words[2:]).params  # type: ignore[attr-defined]
    overrides = given.get("overrides") or []
    if words[1] in ("train", "doctor"):
        run_file.read(given["source"], overrides)
    elif words[1] == "pipeline":
        build(pipelines.read(given["source"], overrides))
    elif words[1] == "methods":
        assert given["name"] is None or given["name"] in recipe_names()
    elif words[1] == "view":
        assert all(str(folder).startswith("runs") for folder in given["runs"])
    else:
        assert words[1] == "eval"
        assert given["model"].startswith(("runs/", "nano/"))


def test_shown_prompts_and_run_files_are_read(beside: Path) -> None:
    prompts, task = from_rows(read_rows("my.jsonl", key="prompts"), key="prompts", chat=True)
    assert [p.answer for p in prompts] == ["85", "Paris"]
    assert task is not None
    shown = [name for page in PAGES for _, name, _ in blocks(page) if name.endswith(".yaml")]
    assert len(shown) >= 4
    for name in shown:
        is_pipeline = "stages:" in Path(name).read_text()
        build(pipelines.read(name)) if is_pipeline else run_file.read(name)


def test_the_shown_task_is_a_task(beside: Path) -> None:
    from opd.data.tasks import get_task

    task = get_task("my_tasks:Capitals")
    prompt = task.prompts("test")[0]
    wrong, right = ({"role": "assistant", "content": text} for text in ("Bergen.", "It is Oslo."))
    first = task.step(prompt, [wrong])
    assert first.message is not None
    assert first.reward is None
    assert task.step(prompt, [wrong, first.message, right]).correct is True
    last = task.step(prompt, [wrong, first.message, wrong])
    assert (last.correct, last.message, last.events[0][0]) == (False, None, "wrong_city")


@pytest.mark.slow
def test_the_quickstart_in_a_short_form(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    output = ""
    for command in commands(DOCS / "quickstart.md"):
        if command.startswith(ELSEWHERE):
            continue
        words = shlex.split(command)[1:]
        short = SHORT if words[0] == "train" else []
        done = subprocess.run(
            [sys.executable, "-m", "opd", *words, *short],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        output += done.stdout
    shown = (DOCS / "quickstart.md").read_text()
    explained = re.findall(r"^\| `([\w/@]+)` \|", shown, re.MULTILINE)
    assert len(explained) > 8
    assert [name for name in explained if name not in output] == []


def test_python_on_the_pages_is_python(beside: Path) -> None:
    shown = [text for page in PAGES for language, _, text in blocks(page) if language == "python"]
    assert len(shown) > 3
    for text in shown:
        ast.parse(text)


class Links(HTMLParser):
    """The resources that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.loads.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.loads.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("the documentation's tools are not installed; pip install -c constraints.txt -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == ""
    return out


@pytest.mark.slow
def test_the_site_needs_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        links = Links()
        links.feed(page.read_text())
        assert [link for link in links.loads if ":" in link and not link.startswith("data:")] == [], page


@pytest.mark.slow
def test_generated_parts_are_whole(site: Path) -> None:
    text = {name: (site / name).read_text() for name in ("map.html", "choosing.html")}
    measured = json.loads((run_file.RECIPES / "measured.json").read_text())
    for name in recipe_names():
        assert f'id="{name}"' in text["map.html"]
        if name in measured:
            assert f"{measured[name]['accuracy'][1]:.1%}" in text["map.html"]
    before, after = (f"{value:.1%}" for value in measured["opd"]["avg@2"][:2])
    assert f"sampled {before} → {after}" in text["choosing.html"].replace("\N{NO-BREAK SPACE}", " ")
    for page in site.rglob("*.html"):
        assert "<!-- generated" not in page.read_text()
    reference = (site / "reference" / "api.html").read_text()
    assert [name for name in opd.__all__ if f">{name}<" not in reference and name != "Message"] == []
    commands_page = (site / "reference" / "commands.html").read_text()
    assert all(f"opd {name}" in commands_page for name in ("train", "doctor", "eval", "methods", "pipeline"))


@pytest.mark.slow
def test_every_key_of_a_run_file_has_a_meaning(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from opd_docs.run_file import pipeline_file
    from opd_docs.run_file import run_file as keys

    rows = [line for line in f"{keys()}\n{pipeline_file()}".splitlines() if line.startswith("| `")]
    assert len(rows) > 120
    assert [row for row in rows if row.endswith("|  |")] == []


OVERFLOW = """() => {
    const found = [], wide = document.documentElement;
    if (wide.scrollWidth > wide.clientWidth) found.push("the page is wider than the screen");
    for (const code of document.querySelectorAll(".md-content pre > code"))
        if (code.scrollWidth > code.clientWidth + 1) found.push("code leaves its box: " + code.innerText.slice(0, 60));
    for (const code of document.querySelectorAll(".md-content td:first-child code, .md-content th code"))
        if (code.getClientRects().length > 1) found.push("a key is broken: " + code.innerText);
    for (const code of document.querySelectorAll(".md-content td code"))
        if (/^[\\w.]+$/.test(code.innerText) && code.getClientRects().length > 1)
            found.push("a name is broken: " + code.innerText);
    return found; }"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_no_page_overflows_or_breaks_names(browser: Any, site: Path, width: int, dark: bool) -> None:
    with Visit(browser, (site / "index.html").as_uri(), width=width, dark=dark) as visit:
        for page in sorted(site.rglob("*.html")):
            if "source" in page.relative_to(site).parts or page.name == "404.html":
                continue
            visit.page.goto(page.as_uri())
            assert visit.page.evaluate(OVERFLOW) == [], page


@pytest.mark.slow
def test_a_key_is_found_by_its_name_without_a_server(browser: Any, site: Path) -> None:
    with Visit(browser, (site / "index.html").as_uri()) as visit:
        visit.page.click(".md-search__input")
        visit.page.keyboard.type("micro_tokens")
        result = visit.page.locator(".md-search-result__link[href*='run-file-optimizer']").first
        result.wait_for()


@pytest.mark.slow
def test_the_reference_is_split_by_part_and_long_pages_have_their_index_in_view(browser: Any, site: Path) -> None:
    pages = sorted(page.stem for page in (site / "reference").glob("run-file*.html"))
    assert len(pages) == 10
    with Visit(browser, (site / "reference" / "run-file.html").as_uri()) as visit:
        visit.page.click("#keys ~ .keys a:text-is('teacher'), .keys a:text-is('teacher')")
        assert visit.page.url.endswith("run-file-teacher.html#teacher")
        visit.page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
        visit.page.wait_for_timeout(300)
        index = visit.page.locator(".md-sidebar--secondary .md-nav__link--active").last
        box = index.bounding_box()
        assert box
        assert 0 <= box["y"] <= 900


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_long_page_has_one_index_in_view_at_every_width(browser: Any, site: Path, width: int) -> None:
    with Visit(browser, (site / "your-own.html").as_uri(), width=width, dark=width == 390) as visit:
        page = visit.page
        page.emulate_media(reduced_motion="reduce")
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
        beside, above = ".md-sidebar--secondary .md-nav__list", ".on-this-page"
        assert [page.is_visible(index) for index in (beside, above)] == [width == 1280, width == 390]
        if width == 1280:
            return
        head = page.locator(".md-header").bounding_box()
        index = page.locator(f"{above} summary")
        assert head
        assert head["height"] - 1 <= index.bounding_box()["y"] <= 100
        index.click()
        links = page.locator(f"{above} a")
        named = page.locator(f"{beside} a").evaluate_all("all => all.map(link => link.hash)")
        assert links.evaluate_all("all => all.map(link => link.hash)") == named
        links.nth(-1).click()
        page.wait_for_timeout(300)
        assert page.get_attribute(above, "open") is None  # it does not cover the section that it led to
        box = index.bounding_box()
        target = page.locator(f'[id="{named[-1][1:]}"]').bounding_box()
        assert target["y"] >= box["y"] + box["height"]
        assert target["y"] < 844


@pytest.mark.slow
def test_a_short_page_has_no_index(site: Path) -> None:
    assert "on-this-page" not in (site / "recovery.html").read_text()
