"""The report page: one HTML file that loads nothing, assembled from the files in ``page/``.

Text of models and data enters the page only as JSON in which no character can end the element; the script inserts it
as text nodes. The content security policy allows exactly this script and this style, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from opd.errors import DataError, OpdError
from opd.output.format import metric_table
from opd.output.run_folder import write_text
from opd.output.visible import shapeless_pattern
from opd.report.block import data_block
from opd.report.data import BUDGET, run_data
from opd.report.denoising import FAMILY, denoising_data, is_denoising
from opd.report.facts import differing

REPORT = "report.html"
"""In the run's folder."""

FOLDER = files("opd") / "report" / "page"
LIBRARY = "vendor/uPlot.min.js"
SCRIPTS = (
    *("dom.js", "model.js", "shared.js", "story.js", "compare.js"),
    *("tokens.js", "rollout.js", "panel.js", "curves.js", "charts.js", "main.js"),
)
SECTIONS = {"short": "Summary", "tokens": "Tokens", "curves": "Curves", "record": "Record"}
DENOISING_SCRIPTS = ("dom.js", "shared.js", "curves.js", "denoising.js", "images.js")
DENOISING_SECTIONS = {"short": "Summary", "images": "Images", "curves": "Curves", "record": "Record"}
STYLES = ("vendor/uPlot.min.css", "style.css")


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, atomically."""
    return write_page([folder], folder / REPORT)


@contextmanager
def said_if_not_written(loop: Any) -> Iterator[None]:
    """Turn a fault of the page at a run's end into an event, which does not hide the error that ended the run."""
    try:
        yield
    except (OSError, OpdError) as error:
        with suppress(OSError):
            loop.log.event(loop.state.step, "report", f"{REPORT} was not written: {error}")


def write_page(folders: Sequence[Path], path: Path) -> Path:
    """Write the page of one run, or of several runs side by side."""
    write_text(path, page(trees(folders)))
    return path


def trees(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The page's data of each run.

    Raises:
        DataError: a folder has no run, or one of several runs is of a denoising model.
    """
    if len(folders) == 1 and is_denoising(folders[0]):
        return [denoising_data(folders[0])]
    for folder in folders:
        if is_denoising(folder):
            raise DataError(
                f"'{folder}' is a run of a denoising model and cannot be shown beside others. Fix: name it alone"
            )
    return [run_data(folder, budget=BUDGET // len(folders)) for folder in folders]


def page(runs: Sequence[dict[str, Any]], *, live: str = "") -> str:
    """The whole page as HTML.

    Args:
        runs: see ``trees``.
        live: name of these data on the server that the page polls for newer ones; empty for a file.
    """
    denoising = runs[0].get("family") == FAMILY
    template = "denoising.html" if denoising else "page.html"
    return assemble(
        template,
        title=" · ".join(run["name"] for run in runs),
        tree=page_tree(runs, live=live),
        sections=DENOISING_SECTIONS if denoising else SECTIONS,
        scripts=(LIBRARY, *(DENOISING_SCRIPTS if denoising else SCRIPTS)),
        styles=STYLES,
        connect=bool(live),
    )


def page_tree(runs: Sequence[dict[str, Any]], *, live: str) -> dict[str, Any]:
    """The data in the page of some runs; a live page asks for it again, see ``page``."""
    return {"runs": runs, "live": live, "differing": differing([run["config"] for run in runs])}


def assemble(
    template: str,
    *,
    title: str,
    tree: Any,
    sections: Mapping[str, str],
    scripts: Sequence[str],
    styles: Sequence[str],
    connect: bool = False,
) -> str:
    """A page: the shell with header, template, data, script and style.

    Args:
        tree: the data.
        sections: titles of the links in the header by section id; the second section is the main content, or the
            only one.
        connect: the page may send requests to the server that it came from.
    """
    libraries = "".join(_file(name) for name in scripts if name.startswith("vendor/"))
    own = "\n".join(_file(name) for name in scripts if not name.startswith("vendor/"))
    constants = {"METRIC_TABLE": metric_table(), "SHAPELESS_PATTERN": shapeless_pattern("\\u{{{:x}}}".format)}
    tables = "\n".join(f"const {name} = {data_block(value)};" for name, value in constants.items())
    script = f'{libraries}\n(() => {{\n"use strict";\n{tables}\n{own}}})();\n'
    style = "\n".join(_file(name) for name in styles)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        f"connect-src {chr(39)}{'self' if connect else 'none'}{chr(39)}; base-uri 'none'; form-action 'none'"
    )
    values = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "skip": list(sections)[:2][-1],
        "sections": "".join(f'<a href="#{name}">{text}</a>' for name, text in sections.items()),
        "data": data_block(tree),
        "script": script,
    }
    pieces = _file("shell.html").replace("{{body}}", _file(template)).split("{{")
    # One pass, so that a value that contains a placeholder is not expanded.
    return pieces[0] + "".join(values[name] + rest for name, _, rest in (p.partition("}}") for p in pieces[1:]))


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
