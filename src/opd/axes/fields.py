"""Templates of run files: texts with plain fields. Nothing here imports torch."""

from __future__ import annotations

from string import Formatter


def formats_a_field(template: str) -> bool:
    """Whether a template does more than name fields.

    A format such as ``{x:>1000000000}`` fills the memory, and an attribute reads objects.

    Raises:
        ValueError: the braces do not match.
    """
    return any(
        spec or conversion or (name is not None and not name.isidentifier())
        for _, name, spec, conversion in Formatter().parse(template)
    )
