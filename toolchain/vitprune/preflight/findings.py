"""What a pre-flight finds, and the verdict that follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Verdict(str, Enum):
    """What a pre-flight can say, worst first.

    blocked: the build or the load fails. unverified: it may work, and there is reason to doubt it. likely: documents say that it
    works, nobody ran it. verified: it was run.
    """

    BLOCKED = "blocked"
    UNVERIFIED = "unverified"
    LIKELY = "likely"
    VERIFIED = "verified"


ORDER = list(Verdict)


@dataclass(frozen=True)
class Finding:
    """What one rule says. mend: what to do about it, "" when there is nothing to do. warning: it works, and yet is not what one wants."""

    rule: str
    title: str
    verdict: Verdict
    text: str
    mend: str = ""
    warning: bool = False

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "verdict": self.verdict.value}


@dataclass(frozen=True)
class Report:
    """A pre-flight: what was looked at, for what, and all findings."""

    bundle: str
    target: str
    runtime: str
    module: str
    findings: list[Finding]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict found."""
        return min((finding.verdict for finding in self.findings), key=ORDER.index, default=Verdict.LIKELY)

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        blocked = self.verdict is Verdict.BLOCKED
        return {
            "status": self.verdict.value, "exit_code": 1 if blocked else 0, "bundle": self.bundle, "target": self.target,
            "runtime": self.runtime, "module": self.module, "findings": [finding.document() for finding in self.findings],
        }  # fmt: skip
