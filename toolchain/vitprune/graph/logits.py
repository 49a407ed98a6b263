"""A graph without its lists of patch numbers: their shapes are data-dependent and would need an allocator at run time."""

from __future__ import annotations

from pathlib import Path

LISTS = ("kept_", "group_")


def with_logits_only(source: Path, destination: Path) -> None:
    """Copy a model without its lists of patches; builders remove the nodes that only fed those."""
    import onnx

    model = onnx.load(str(source))
    wanted = [output for output in model.graph.output if not output.name.startswith(LISTS)]
    del model.graph.output[:]
    model.graph.output.extend(wanted)
    onnx.save(model, str(destination))
