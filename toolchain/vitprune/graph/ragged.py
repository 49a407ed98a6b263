"""Where tokens with counts of their own in every image are born: written into the model's metadata, for runtimes that can pack them.

The graph itself stays in [B,N,C] with pads. A lowering may lay the rows of all images behind each other from such a place on
(`graph/lowering/packed.py`); whoever does not know of it never looks here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import onnx

from vitprune.support import json_text

KEY = "vitprune.ragged"


@dataclass(frozen=True)
class Ragged:
    """One place.

    Attributes:
        tokens: name of a tensor [B,prefix+K,...] of token rows. keep: name of bool [B,K], True on the patch rows that are no pads; "" where
        all images have all of their rows, as before the first site.
    """

    tokens: str
    keep: str = ""


def store(model: onnx.ModelProto, prefix: int, entering: str, places: list[Ragged]) -> None:
    """Write places into a model's metadata; nothing where every image keeps as many tokens.

    Args:
        model: changed. prefix: tokens ahead of the patches, which never leave. entering: name of the rows [B,N,C] that enter block 0.
        places: in the graph's order.
    """
    if places:
        told = {"prefix": prefix, "places": [asdict(one) for one in [Ragged(entering), *places]]}
        model.metadata_props.add(key=KEY, value=json.dumps(told))


def stored(model: onnx.ModelProto) -> tuple[int, list[Ragged]]:
    """Prefix and places of a model; (0, []) where it has none or they are not as `store` writes them."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), "")
    try:
        told = json_text.parse(text)
        prefix, places = told["prefix"], [Ragged(**one) for one in told["places"]]
        if (
            type(prefix) is not int
            or prefix < 0
            or not all(type(name) is str for one in places for name in (one.tokens, one.keep))
        ):
            return 0, []
    except (ValueError, TypeError, KeyError):
        return 0, []
    return prefix, places
