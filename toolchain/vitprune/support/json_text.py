"""JSON as the standard has it: no key twice, no NaN, no nesting that ends the interpreter."""

from __future__ import annotations

import json
from typing import Any

DEPTH = 64


def parse(text: str) -> Any:
    """Parse one document.

    Raises:
        ValueError: with a sentence that says why.
    """
    try:
        found = json.loads(text, object_pairs_hook=_mapping, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _require_shallow(found, DEPTH)
    return found


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _require_shallow(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError("it is nested too deeply")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(part, (dict, list)):
            _require_shallow(part, left - 1)
        elif isinstance(part, str):
            part.encode()  # half a surrogate pair is no text, and raises UnicodeEncodeError, a ValueError
