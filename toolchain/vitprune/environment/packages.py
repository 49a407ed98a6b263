"""Versions of Python packages, read from their metadata: nothing is imported, a broken package cannot break the answer."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from importlib import metadata
from pathlib import Path

# What the toolchain uses, and what without it does not work.
PURPOSE = {
    "numpy": "everything",
    "onnx": "export, surgery, engine builds",
    "onnx_graphsurgeon": "export and rewrite",
    "onnxruntime": "validation and benchmarks on the CPU",
    "torch": "export, live PyTorch reference",
    "timm": "export by model name",
    "tensorrt": "engines for Jetson, desktop and server GPUs",
    "tensorrt_rtx": "engines for desktop GPUs, built without a GPU",
}


def version(module: str) -> str | None:
    """Version of an importable module, "unknown" when it does not say, None when it is not installed."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    for name in (module, *_distributions().get(module, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return _written(spec.origin)


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def _written(origin: str | None) -> str:
    """`__version__ = "..."` in the module's own file (system packages often come without metadata)."""
    try:
        found = re.search(
            r"""^__version__\s*=\s*["']([^"']+)["']""", Path(origin or "").read_text(encoding="utf-8"), re.MULTILINE
        )
    except (OSError, UnicodeDecodeError):
        return "unknown"
    return found[1] if found else "unknown"


def providers() -> list[str]:
    """Execution providers of the installed ONNX Runtime, [] when it is missing or cannot be loaded."""
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    try:
        import onnxruntime

        return [str(name) for name in onnxruntime.get_available_providers()]
    except Exception:  # a library that does not load is a finding of its own: the list stays empty
        return []
