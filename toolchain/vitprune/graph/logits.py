"""A graph that gives only its logits: kept patch numbers have data-dependent shapes, which need an allocator at run time."""

from __future__ import annotations

from pathlib import Path


def with_logits_only(source: Path, destination: Path) -> None:
    """Copy a model without its outputs after the first; builders remove the nodes that only fed those."""
    import onnx

    model = onnx.load(str(source))
    del model.graph.output[1:]
    onnx.save(model, str(destination))
