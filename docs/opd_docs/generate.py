"""Replaces the marks ``<!-- generated: NAME -->`` and ``<!-- measured: RECIPE -->`` in pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from mkdocs.exceptions import PluginError

from opd.config.read import recipe_names
from opd_docs import api, commands, run_file, the_map

PARTS: Mapping[str, Callable[[], str]] = {
    "the map": the_map.overview,
    "places": the_map.places,
    "recipes": the_map.recipes,
    "run file": run_file.keys_of_the_file,
    "commands": commands.commands,
    "names of opd": api.names,
    "names of opd.losses": api.losses,
    "names of opd.types": api.types,
}
"""Generators by the name in the mark."""

_MARK = re.compile(r"<!-- (generated|measured): (.+?) -->")


def fill(markdown: str, page: str) -> str:
    """Replace every mark by its generated part.

    Raises:
        PluginError: a mark names nothing that there is; the build stops.
    """

    def part(match: re.Match[str]) -> str:
        kind, name = match.groups()
        if kind == "generated" and name in PARTS:
            return PARTS[name]()
        if kind == "measured" and name in recipe_names():
            return the_map.here(name)
        raise PluginError(f"{page}: there is nothing to fill in for '{match[0]}'")

    return _MARK.sub(part, markdown)
