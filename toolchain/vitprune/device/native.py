"""Building the native library where that is possible, and saying why where it is not; used on the host and on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def build_for(architecture: str = "", *, cache: Path | None = None, needs_cuda: bool = False) -> dict[str, Any]:
    """Build (or take from the cache) the library for one GPU architecture.

    Args:
        architecture: as nvcc writes it, such as "87"; "" for all that nvcc can build for.
        cache: folder of finished builds.
        needs_cuda: without nvcc, build nothing instead of the host part alone.

    Returns:
        {"built": True, "library", "cached", "nvcc", "tensorrt", "architectures", ...} or {"built": False, "reason"}.
    """
    from vitprune.plugins import PluginError, build

    try:
        report = build(architectures=(architecture,) if architecture else (), cuda=needs_cuda or None, cache=cache)
    except PluginError as error:
        return {"built": False, "reason": f"{error.code}: {' '.join(error.cause.split())[:400]}"}
    return {
        "built": True, "library": str(report.library), "cached": report.cached, "version": report.version,
        "compiler": report.compiler, "nvcc": report.nvcc, "architectures": list(report.architectures),
        "tensorrt": report.tensorrt, "onnxruntime_api": report.onnxruntime_api,
    }  # fmt: skip
