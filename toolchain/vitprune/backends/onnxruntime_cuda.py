"""ONNX Runtime's CUDA provider: runs bundles on NVIDIA GPUs with the model's own functions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.backends import onnxruntime as cpu
from vitprune.errors import LoadError
from vitprune.support.gpus import local_gpus

if TYPE_CHECKING:
    from vitprune.bundle import Bundle

PROVIDER = "CUDAExecutionProvider"


def missing() -> str:
    """Why the backend cannot be used here, or ""."""
    if why := cpu.missing():
        return why
    import onnxruntime

    if PROVIDER not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA provider (pip install onnxruntime-gpu)"
    return "" if local_gpus() else "there is no GPU here"


def version() -> str:
    """Version of ONNX Runtime."""
    return cpu.version()


class Session(cpu.Session):
    """model.onnx of a bundle, or an engine folder built for onnxruntime-cuda, on the GPU.

    Raises:
        LoadError: VP612 ONNX Runtime refuses the model, VP636 it would run it on the CPU after all.
    """

    backend = "onnxruntime_cuda"
    providers = (PROVIDER, "CPUExecutionProvider")

    def __init__(self, bundle: Bundle, engine: Path | None = None, target: str | None = None) -> None:
        super().__init__(bundle, engine, target)
        require_cuda(self._session)


def require_cuda(session: Any) -> None:
    """Refuse a session that fell back to the CPU: ONNX Runtime only logs that.

    Raises:
        LoadError: VP636.
    """
    if PROVIDER not in session.get_providers():
        raise LoadError(
            636,
            "the GPU cannot be used",
            cause="ONNX Runtime could not start its CUDA provider and fell back to the CPU",
            next_step="check that CUDA 13 and cuDNN 9 are installed, or --backend onnxruntime",
        )


def build(request: dict[str, Any], report: Any) -> dict[str, Any]:
    """Copy the graph and load it once on the GPU; see `building` for the request. Returns facts for engine.json."""
    shutil.copyfile(request["model"], request["output"])
    report("loading the graph on the GPU")
    session = cpu.make_session(Path(request["output"]), providers=Session.providers)
    require_cuda(session)
    return {"runtime": f"onnxruntime {version()}", "providers": session.get_providers(), "gpu": local_gpus()[0].name}
