"""Rules: functions that look at a bundle and a target, registered by a stable id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitprune.preflight.context import Context
from vitprune.preflight.findings import Finding, Verdict
from vitprune.support import registry

Opinion = tuple[Verdict, str, str] | tuple[Verdict, str, str, bool]  # verdict, text, how to mend it, whether to warn all the same
Check = Callable[[Context], "Opinion | None"]


@dataclass(frozen=True)
class Rule:
    """A rule: its stable id, one line on what it looks at, and the function that looks."""

    id: str
    title: str
    check: Check

    def find(self, context: Context) -> Finding | None:
        """The rule's finding, None where it does not apply."""
        opinion = self.check(context)
        return None if opinion is None else Finding(self.id, self.title, *opinion)


_RULES: dict[str, Rule] = {}


def rule(identifier: str, title: str) -> Callable[[Check], Check]:
    """Register a function as a rule; it returns (verdict, text, mend) and True for a warning, or None where it does not apply."""

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
