"""The page: one HTML file that loads nothing. Its parts are files beside this one; here they are put together.

Text of models and of data enters as JSON alone, in which nothing can end the element it stands in, and the script puts
it into the page as text. The content security policy lets in this very script and style, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from opd.errors import DataError
from opd.output.run_folder import write_text
from opd.report.data import BUDGET, run_data
from opd.report.denoising import FAMILY, denoising_data, is_denoising

REPORT = "report.html"
"""In the run's folder."""

PARTS = files("opd") / "report" / "page"
LIBRARY = "vendor/uPlot.min.js"
SCRIPTS = ("dom.js", "model.js", "parts.js", "story.js", "tokens.js", "panel.js", "curves.js", "charts.js", "main.js")
DENOISING_SCRIPTS = ("dom.js", "parts.js", "curves.js", "denoising.js", "images.js")
STYLES = ("vendor/uPlot.min.css", "style.css")

ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""What could end a script element or a line of one, as JSON also writes it."""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all."""
    return write_page([folder], folder / REPORT)


def write_page(folders: Sequence[Path], path: Path) -> Path:
    """One page of one run, or of several side by side."""
    write_text(path, page(trees(folders)))
    return path


def trees(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What a page shows of each run.

    Raises:
        DataError: a folder holds no run, or one of several is of a denoising model.
    """
    if len(folders) == 1 and is_denoising(folders[0]):
        return [denoising_data(folders[0])]
    for folder in folders:
        if is_denoising(folder):
            raise DataError(f"'{folder}' is a run of a denoising model, whose page stands alone; name it by itself")
    return [run_data(folder, budget=BUDGET // len(folders)) for folder in folders]


def page(runs: Sequence[dict[str, Any]], *, live: bool = False) -> str:
    """The whole page.

    Args:
        runs: see ``trees``.
        live: let it ask its own server for news.
    """
    tree = {"runs": runs, "live": live}
    title = " · ".join(run["name"] for run in runs)
    denoising = runs[0].get("family") == FAMILY
    template, scripts = ("denoising.html", DENOISING_SCRIPTS) if denoising else ("page.html", SCRIPTS)
    return assemble(template, title=title, tree=tree, scripts=scripts, styles=STYLES, library=LIBRARY, asks=live)


def assemble(
    template: str,
    *,
    title: str,
    tree: Any,
    scripts: Sequence[str],
    styles: Sequence[str],
    library: str | None = None,
    asks: bool = False,
) -> str:
    """A page: the shell around a template, with data, script and style in their places.

    Args:
        asks: lets it ask its own server.
    """
    own = "\n".join(_part(name) for name in scripts)
    script = f'{_part(library) if library else ""}\n(() => {{\n"use strict";\n{own}}})();\n'
    style = "\n".join(_part(name) for name in styles)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        f"connect-src {chr(39)}{'self' if asks else 'none'}{chr(39)}; base-uri 'none'; form-action 'none'"
    )
    values = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "data": data_block(tree),
        "script": script,
    }
    pieces = _part("shell.html").replace("{{body}}", _part(template)).split("{{")
    # One pass, so that nothing in a value is ever read as a place to fill in.
    return pieces[0] + "".join(values[name] + rest for name, _, rest in (p.partition("}}") for p in pieces[1:]))


def data_block(tree: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(ESCAPES)


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
