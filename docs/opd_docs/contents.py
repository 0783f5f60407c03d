"""The index at the top of a long page, for screens too narrow for the theme's own beside the text."""

from __future__ import annotations

from collections.abc import Iterable

from mkdocs.structure.toc import AnchorLink, TableOfContents

LONG = 3
"""Number of sections from which a page has an index."""

_CLOSE = "this.parentNode.open = false"


def with_contents(html: str, toc: TableOfContents) -> str:
    """A page's content with a folded index right below its title."""
    sections = [section for title in toc for section in title.children]
    if len(sections) < LONG:
        return html
    summary = "<summary>On this page</summary>"
    index = f'<details class="on-this-page">{summary}<nav onclick="{_CLOSE}">{_list(sections)}</nav></details>'
    return html.replace("</h1>", f"</h1>{index}", 1)


def _list(links: Iterable[AnchorLink]) -> str:
    items = (
        f'<li><a href="{link.url}">{link.title}</a>{_list(link.children) if link.children else ""}</li>'
        for link in links
    )
    return f"<ul>{''.join(items)}</ul>"
