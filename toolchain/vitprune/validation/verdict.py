"""What validation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitprune.validation.compare import Comparison, Gate, status


@dataclass(frozen=True)
class Verdict:
    """Outcome of a validation; tables: (title, columns, rows) of a pipeline's own, shown before the gates."""

    bundle: str
    backend: str
    reference: str
    data: str
    comparison: Comparison
    gates: list[Gate]
    macs: dict[str, float]
    tables: tuple[tuple[str, list[str], list[list[str]]], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)

    @property
    def status(self) -> str:
        """As `compare.status` says it."""
        return status(self.gates)

    @property
    def rung(self) -> str:
        """The rung of evidence this stands on (architecture §9)."""
        if not self.reference.startswith(("PyTorch", "stored")):
            return f"{self.backend} and {self.reference} agree or not; nothing is said of the PyTorch reference"
        if self.backend.startswith("tensorrt") or self.backend.endswith("cuda"):
            return "engine = reference on a GPU"
        if self.comparison.accuracy is not None:
            return "task accuracy"
        return "graph = reference on CPU" if self.reference != "stored ONNX Runtime results" else "graph = itself on another run"

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        gates = [gate.document() for gate in self.gates]
        return {
            "status": self.status, "exit_code": 0 if self.passed else 1, "bundle": self.bundle,
            "backend": self.backend, "reference": self.reference, "data": self.data, "evidence": self.rung, "gates": gates,
            "macs": self.macs, "comparison": self.comparison.document(),
        }  # fmt: skip
