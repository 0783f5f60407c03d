"""Renderings of a chat template, a program that comes with a tokenizer: bounded in time, memory and length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

from jinja2 import Environment, TemplateSyntaxError

from opd.errors import ModelError
from opd.models.bounds import within

DEADLINE = 10.0
"""Seconds for one rendering, and a hundredth of them more for each further message or conversation of it."""

MEMORY = 2**30
"""Bytes for one rendering."""

LONGEST = 2**24
"""Characters; a longer text has to be less than ten times as long as the messages that it is made of."""


def render(
    tokenizer: Any,
    messages: Sequence[Any],
    *,
    generate: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    kwargs: Mapping[str, Any],
) -> Any:
    """The template's text of messages, or of each of several conversations. It raises whatever the template raises.

    Args:
        generate: whether the text ends in the generation prompt.
        kwargs: arguments of the template.

    Raises:
        ModelError: the template takes too long, needs too much memory, or makes far too long a text.
    """
    name, fix = f"the chat template of '{tokenizer.name_or_path}'", "Fix: correct it, or take another tokenizer"
    template = tokenizer.chat_template
    if any(map(_raises_to_a_power, template.values() if isinstance(template, Mapping) else [template or ""])):
        raise ModelError(f"{name} has the operator '**', whose result has no bound. {fix}")
    given = [dict(tool) for tool in tools] if tools else None
    call = partial(
        tokenizer.apply_chat_template,
        messages,
        tools=given,
        tokenize=False,
        add_generation_prompt=generate,
        **kwargs,
    )
    try:
        found = within(DEADLINE + len(messages) * DEADLINE / 100, MEMORY, call)
    except TimeoutError as error:
        raise ModelError(f"{name} does not end ({error}). {fix}") from None
    except MemoryError:
        raise ModelError(f"{name} needs more than {MEMORY / 2**30:g} GiB of memory. {fix}") from None
    longest = max(map(len, [found] if isinstance(found, str) else found), default=0)
    if longest > LONGEST and longest > 10 * len(json.dumps([messages, given], default=str)):
        raise ModelError(f"{name} makes a text of {longest:,} characters, ten times those of the messages. {fix}")
    return found


@lru_cache
def _raises_to_a_power(template: str) -> bool:
    """Whether the operator ``**`` stands between two values; in a call it unpacks arguments.

    A power of powers keeps Python inside one operation, which no deadline in the same process can end.
    """
    try:
        texts = [text for _, kind, text in Environment().lex(template) if kind not in {"whitespace", "data"}]
    except TemplateSyntaxError:
        return False
    return any(text == "**" and before not in {"(", ","} for before, text in pairwise(texts))
