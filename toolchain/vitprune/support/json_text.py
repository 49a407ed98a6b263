"""JSON as the standard has it: no key twice, no NaN, no nesting that ends the interpreter; numbers that are not finite are written as null."""

from __future__ import annotations

import json
import math
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


def written(document: Any) -> str:
    """The text of a document, ending in a newline: what `parse` takes."""
    return json.dumps(_finite(document), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value


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
