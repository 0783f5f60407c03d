"""YAML as run files need it: bounded, each key once, and no tags, dates or cycles. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
"""Length of the longest text; the shipped recipes have up to 3,000 characters."""

MAX_DEPTH = 50
"""Largest number of values inside each other, aliases included."""

MAX_VALUES = 100_000
"""Largest number of values, each alias counted as all that it stands for."""

MAX_DIGITS = 40
"""Length of the longest integer."""


def parse(text: str) -> Any:
    """The value that a text stands for.

    Raises:
        ValueError: it is no YAML, or more than run files need; the message is one sentence without a full stop.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has more than {MAX_CHARACTERS:,} characters")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"line {line} has the tag '{event.tag}', and run files have none")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"line {line} has more than {MAX_DEPTH} values inside each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ValueError(
                    f"'{key.value}' stands twice, on lines {seen[key.value]} and {line}; rename or delete one"
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise ValueError(f"line {node.start_mark.line + 1} has an integer of {len(node.value):,} digits")
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The number of values in a node, and how deep they stand.

    An alias is the same node again, so cycles and bombs are found here, before anything is built.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1, 1
    line = node.start_mark.line + 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES, MAX_DEPTH  # found again before it is known: the node holds itself
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes = [_measure(part, known) for part in inner]
        known[id(node)] = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
    size, depth = known[id(node)]
    if size > MAX_VALUES:
        raise ValueError(f"line {line} stands for more than {MAX_VALUES:,} values")
    if depth > MAX_DEPTH:
        raise ValueError(f"line {line} has more than {MAX_DEPTH} values inside each other")
    return size, depth
