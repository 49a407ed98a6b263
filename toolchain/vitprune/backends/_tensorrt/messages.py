"""What TensorRT says and how far it is, on its way to the log and to the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

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
    """A progress monitor that reports the outermost phases: the inner ones pass by the thousand."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outer: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase or parent_phase in self.outer and len(self.outer) < 2:
                self.outer[phase_name] = num_steps
                report(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self.outer.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.outer.get(phase_name, 0)
            if total and (total < 20 or step % (total // 10) == 0):
                report(f"{phase_name} {step + 1}/{total}")
            return True

    return Monitor()
