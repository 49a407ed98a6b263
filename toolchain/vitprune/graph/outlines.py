"""What a site does as one operator: written into the model beside its plain nodes, for runtimes whose library has that operator.

The plain nodes stay what a model means. A lowering may put one node in their place where the library is at hand
(`graph/lowering/merging.py`, `pruning.py`); a runtime without it never looks here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from vitprune.graph.types import Tensor
from vitprune.support import json_text

KEY = "vitprune.sites"


@dataclass(frozen=True)
class Outline:
    """One site.

    Attributes:
        kind: name of the operator. inputs, outputs: tensor names in the graph by their role, absent ones left out.
        attributes: its attributes: whole numbers, floats and texts.
    """

    kind: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    attributes: dict[str, int | float | str]

    def typed(self, kinds: Mapping[str, type]) -> bool:
        """Whether it has attributes of these names and types, and no others."""
        return {name: type(value) for name, value in self.attributes.items()} == dict(kinds)


def outline(
    kind: str,
    inputs: Mapping[str, Tensor | None],
    outputs: Mapping[str, Tensor | None],
    **attributes: float | str,
) -> Outline:
    """The outline of a site whose tensors are given by role; None = it has none."""

    def names(tensors: Mapping[str, Tensor | None]) -> dict[str, str]:
        return {role: tensor.name for role, tensor in tensors.items() if tensor is not None}

    return Outline(kind, names(inputs), names(outputs), attributes)


def store(model: onnx.ModelProto, outlines: list[Outline]) -> None:
    """Write outlines into a model's metadata."""
    if outlines:
        onnx.helper.set_model_props(model, {KEY: json.dumps([asdict(one) for one in outlines])})


def stored(model: onnx.ModelProto) -> list[Outline]:
    """Outlines of a model; none where it has none or they are not as `store` writes them."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), "[]")
    try:
        return [_read(one) for one in json_text.parse(text)]
    except (ValueError, TypeError, KeyError):
        return []


def _read(one: dict[str, Any]) -> Outline:
    found = Outline(str(one["kind"]), dict(one["inputs"]), dict(one["outputs"]), dict(one["attributes"]))
    if not all(isinstance(value, str) for value in (*found.inputs.values(), *found.outputs.values())):
        raise TypeError("tensor names are texts")
    if not all(isinstance(value, int | float | str) for value in found.attributes.values()):
        raise TypeError("attributes are numbers or texts")
    return found
