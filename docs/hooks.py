"""Hooks of the mkdocs build: generated parts, and links to files outside docs/."""

from __future__ import annotations

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from opd_docs import run_file
from opd_docs.contents import with_contents
from opd_docs.generate import fill
from opd_docs.links import outside, page_of, relink, text_of


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the run file's parts, and one for every file of the repository that a page links to."""
    for path, content in run_file.pages().items():
        files.append(File.generated(config, path, content=content))
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for path in outside(pages):
        files.append(File.generated(config, page_of(path), content=text_of(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files, **_: Any) -> str:
    return relink(fill(markdown, page.file.src_uri), page.file.src_uri)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    return with_contents(html, page.toc)
