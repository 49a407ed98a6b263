"""YAML reading without YAML 1.1's surprises, and without its bombs.

`batch: 1:4:8` is a batch profile, not 3,848; a date is text; a key stands once. Aliases are counted at what they expand to.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

DEPTH = 64
NODES = 100_000
LENGTH = 1 << 20
_PLAIN = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):
    """SafeLoader whose integers and floats have no colons, which knows no dates, and refuses a key that is there twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping; raises ConstructorError for a key that is there twice (a merged one may be overridden)."""
        seen: set[Any] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' is there twice", key.start_mark)
            seen.add(name)
        self.flatten_mapping(node)
        found: dict[Any, Any] = {}
        for key, value in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain value", key.start_mark)
            found[name] = self.construct_object(value, deep=deep)
        return found


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$"),
    list("-+.0123456789"),
)


def parse(text: str) -> Any:
    """Parse one document.

    Raises:
        yaml.YAMLError: it is not YAML, nested deeper than DEPTH, longer than LENGTH characters, or larger than NODES once its aliases
            are written out.
    """
    if len(text) > LENGTH:
        raise yaml.YAMLError(f"it has {len(text):,} characters, more than {LENGTH:,}")
    try:
        _require_shallow(text)
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            _weight(node, {})
        return yaml.load(text, Loader=_Loader)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        # What PyYAML's constructors raise on text that an explicit tag (!!int, !!timestamp) does not fit.
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


def _require_shallow(text: str) -> None:
    """Follow the nesting of the events: composing nodes recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > DEPTH:
                raise yaml.YAMLError(f"it is nested deeper than {DEPTH}")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1


def _weight(node: Any, known: dict[int, int]) -> int:
    """Nodes below and including one, aliases written out; 0 marks a node whose count is under way, so that it contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.YAMLError("an alias contains itself")
        return known[id(node)]
    known[id(node)] = 0
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    total = 1 + sum(_weight(part, known) for part in parts)
    if total > NODES:
        raise yaml.YAMLError(f"its aliases expand to more than {NODES:,} values")
    known[id(node)] = total
    return total
