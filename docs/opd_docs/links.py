"""Links to files outside docs/: to the file on GitHub, to a generated page in the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Root of the repository."""

SHOWN = "source"
"""Folder of the site with pages that show files from outside docs/."""

LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}

_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def page_of(path: str) -> str:
    """The site's page that shows a file, by the file's path in the repository."""
    return f"{SHOWN}/{path if path.endswith('.md') else f'{path}.md'}"


def outside(pages: Mapping[str, str]) -> list[str]:
    """Paths in the repository of files outside docs/ that pages link to, directly or through other files.

    Args:
        pages: text by path in docs/.
    """
    found: set[str] = set()
    waiting = [target for page, text in pages.items() for target in _targets(text, f"docs/{page}")]
    while waiting:
        path = waiting.pop()
        if path in found or path.startswith("docs/") or not (ROOT / path).is_file():
            continue
        found.add(path)
        if path.endswith(".md"):
            waiting += _targets((ROOT / path).read_text(), path)
    return sorted(found)


def text_of(path: str) -> str:
    """The page of a file: Markdown unchanged, any other file as code."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {Path(path).name}\n\n`{path}`\n\n````{language}\n{text}````\n"


def relink(markdown: str, page: str) -> str:
    """Point links to files outside docs/ to their pages.

    Args:
        page: the page's path in the site's sources, as ``quickstart.md`` or ``source/CONTRIBUTING.md``.
    """
    shown = page.startswith(f"{SHOWN}/")
    home = posixpath.dirname(page.removeprefix(f"{SHOWN}/") if shown else f"docs/{page}")

    def lead(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(home, match[1]))
        if ":" in match[1] or not (ROOT / path).is_file():
            return match[1]
        target = path.removeprefix("docs/") if path.startswith("docs/") else page_of(path)
        return posixpath.relpath(target, posixpath.dirname(page) or ".")

    return _outside_code(markdown, lambda prose: _LINK.sub(lead, prose))


def _targets(text: str, path: str) -> list[str]:
    """Relative links in a text, as paths in the repository."""
    prose = _CODE.sub("", text)
    return [posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in _LINK.findall(prose)]


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(text[end:])])
