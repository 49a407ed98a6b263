"""How far a TensorRT or TensorRT-RTX builder is."""

from __future__ import annotations

from collections.abc import Callable


class Outermost:
    """The methods of a progress monitor that reports the outermost phases: the inner ones pass by the thousand."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.outer: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        if not parent_phase or parent_phase in self.outer and len(self.outer) < 2:
            self.outer[phase_name] = num_steps
            self.report(phase_name)

    def phase_finish(self, phase_name: str) -> None:
        self.outer.pop(phase_name, None)

    def step_complete(self, phase_name: str, step: int) -> bool:
        total = self.outer.get(phase_name, 0)
        if total and (total < 20 or step % (total // 10) == 0):
            self.report(f"{phase_name} {step + 1}/{total}")
        return True
