"""A graph without its lists of patch numbers: their shapes are data-dependent and would need an allocator at run time."""

from __future__ import annotations

from pathlib import Path

from vitprune.graph import wire

LISTS = ("kept_", "group_")


def with_logits_only(source: Path, destination: Path) -> None:
    """Copy a model without its lists of patches; builders remove the nodes that only fed those. Needs no onnx package."""
    destination.write_bytes(wire.without_outputs(source.read_bytes(), lambda name: name.startswith(LISTS)))
