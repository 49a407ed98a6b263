"""Rules, what they find, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitprune.preflight.context import Context
from vitprune.support import registry


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
    """What one rule says. mend: what to do about it, "" when there is nothing to do."""

    rule: str
    title: str
    verdict: Verdict
    text: str
    mend: str = ""

    def document(self) -> dict[str, str]:
        """JSON-ready form."""
        return {**asdict(self), "verdict": self.verdict.value}


Said = tuple[Verdict, str, str]
Check = Callable[["Context"], "Said | None"]


@dataclass(frozen=True)
class Rule:
    """A rule: its stable id, one line on what it looks at, and the function that looks."""

    id: str
    title: str
    check: Check

    def find(self, context: Context) -> Finding | None:
        """The rule's finding, None where it does not apply."""
        said = self.check(context)
        return None if said is None else Finding(self.id, self.title, *said)


_RULES: dict[str, Rule] = {}


def rule(identifier: str, title: str) -> Callable[[Check], Check]:
    """Register a function as a rule; it returns (verdict, text, mend), or None where it does not apply."""

    def register(check: Check) -> Check:
        if identifier in _RULES:
            raise ValueError(f"{identifier} is taken by '{_RULES[identifier].title}'")
        _RULES[identifier] = Rule(identifier, title, check)
        return check

    return register


def all_rules() -> list[Rule]:
    """Every rule, by id."""
    for name in registry.inside("vitprune.preflight"):
        if name.startswith("rules_"):
            registry.module(f"vitprune.preflight.{name}")
    return [_RULES[name] for name in sorted(_RULES)]


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
