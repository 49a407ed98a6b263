"""A graph without its lists of patch numbers: their shapes are data-dependent and would need an allocator at run time."""

from __future__ import annotations

from pathlib import Path

from vitprune.errors import LoadError, first_line
from vitprune.graph import wire
from vitprune.support.onnx_weights import take_along

LISTS = ("kept_", "group_")


def with_logits_only(source: Path, destination: Path) -> None:
    """Copy a model, with weights that lie beside it, without its lists of patches; builders remove the nodes that only fed those. Needs no onnx package.

    Raises:
        LoadError: VP604 it is no ONNX model.
    """
    try:
        made = wire.without_outputs(source.read_bytes(), lambda name: name.startswith(LISTS))
    except (ValueError, LookupError, RecursionError) as error:  # among them text that is no UTF-8
        raise LoadError(
            604, f"'{source}' is not a readable ONNX model", cause=first_line(error), next_step="export the bundle again"
        ) from error
    destination.write_bytes(made)
    take_along(source, destination)
