"""What TensorRT says and how far it is, on its way to the log and to the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vitprune.backends._progress import Outermost

if TYPE_CHECKING:
    import tensorrt as trt


def logger(messages: list[str]) -> trt.ILogger:
    """A logger that keeps warnings and errors, each with its severity before it."""
    import tensorrt as trt

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                messages.append(f"{severity.name}: {msg}")

    return Logger()


def monitor(report: Callable[[str], None]) -> trt.IProgressMonitor:
    """A progress monitor."""
    import tensorrt as trt

    class Monitor(Outermost, trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            Outermost.__init__(self, report)

    return Monitor()
