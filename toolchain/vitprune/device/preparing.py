"""What can be proven on the host before a package leaves: the static checks, the plugin's compilation, NVIDIA's RTX builder.

Each finding is a mapping {"status": "passed" | "failed" | "skipped", "detail": sentence, ...}. A blocked pre-flight stops the
packaging; the other two only inform, since the device's TensorRT is another program.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitprune import backends
from vitprune.bundle import Bundle
from vitprune.device.hardware import capability_of
from vitprune.device.native import build_for
from vitprune.engines import building
from vitprune.errors import VitpruneError
from vitprune.graph.lowering.logits import with_logits_only
from vitprune.support import temporary
from vitprune.targets import Choice, Target

STAND_IN = "tensorrt_rtx"


def preflight(bundle: Bundle, choice: Choice, batch: tuple[int, int, int], architecture: str = "") -> dict[str, Any]:
    """The static checks for a target, release, module and stated compute capability, where this version has them.

    Raises:
        PreflightError: VP4xx when they block.
    """
    from vitprune.preflight import check as checks

    report = checks.check(bundle, choice, batch=batch, architecture=architecture, elsewhere=True)
    checks.require(report)
    document = report.document()
    return {"status": "passed", "detail": f"{document['status']}, for {document['runtime']}{_where(choice)}", "report": document}


def _where(choice: Choice) -> str:
    return f" on {choice.module.title}" if choice.module is not None else ""


def compile_plugin(target: Target) -> dict[str, Any]:
    """Compile the native library with the target's compute capability; without nvcc that is only noted."""
    capability = capability_of(target)
    if not capability:
        return {"status": "skipped", "detail": "the target names no compute capability"}
    report = build_for(capability, needs_cuda=True)
    if not report["built"]:
        missing = report["reason"].startswith(("VP601", "VP602", "VP603"))
        return {"status": "skipped" if missing else "failed", "detail": report["reason"]}
    report.pop("library")
    parts = f"TensorRT {report['tensorrt']} plugin" if report["tensorrt"] else "kernels only: TensorRT's headers are not here"
    return {"status": "passed", "detail": f"compiled for SM {capability} with nvcc {report['nvcc']}; {parts}", **report}


def stand_in_build(
    bundle: Bundle, batch: tuple[int, int, int], timeout: float, report: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Build the graph with TensorRT-RTX, which needs no GPU, and throw the engine away: another NVIDIA parser and builder take it."""
    backend = backends.get(STAND_IN)
    if why := backend.missing():
        return {"status": "skipped", "detail": why}
    with temporary.folder(Path(tempfile.gettempdir()) / "vitprune") as work:
        with_logits_only(bundle.model_path, work / "graph.onnx")
        request = {
            "backend": STAND_IN, "model": str(work / "graph.onnx"), "output": str(work / "engine"), "log": str(work / "build.log"),
            "batch": batch, "workspace_mib": None,
        }  # fmt: skip
        try:
            facts = building.run_child(request, report, timeout)
        except VitpruneError as error:
            return {"status": "failed", "detail": f"{error.code}: {error.message}: {error.cause}", "error": error.document()}
    return {
        "status": "passed",
        "detail": f"{facts['runtime']} builds the graph; its engine is not for this target",
        "facts": facts,
    }
