"""Runs every rule on a bundle and a target."""

from __future__ import annotations

import platform

from vitprune.bundle import Bundle
from vitprune.errors import PreflightError
from vitprune.preflight.context import Context
from vitprune.preflight.findings import Report, Verdict
from vitprune.preflight.rules import all_rules
from vitprune.support.gpus import local_gpus
from vitprune.targets import Choice, capability


def check(
    bundle: Bundle,
    choice: Choice,
    *,
    batch: tuple[int, int, int] | None = None,
    architecture: str = "",
    elsewhere: bool = False,
) -> Report:
    """Look at a bundle for a target without building anything.

    Args:
        bundle: an opened bundle.
        choice: target, release and module, from `targets.choose`.
        batch: (min, opt, max) instead of the recipe's.
        architecture: compute capability of the device ("87" or "8.7"), where the user states it.
        elsewhere: a new engine is to be built on another machine: neither the GPUs of this one nor an earlier engine count.

    Raises:
        TargetError: VP224 when `architecture` is no compute capability.
    """
    profile = batch or bundle.recipe.graph.profile
    gpus = [] if elsewhere else local_gpus()
    context = Context(bundle, choice, profile, capability(architecture), gpus, platform.machine(), elsewhere)
    findings = [found for one in all_rules() if (found := one.find(context)) is not None]
    return Report(str(bundle.path), choice.target.name, runtime_text(choice), choice.module_name, findings)


def runtime_text(choice: Choice) -> str:
    """The runtime that is assumed, for people."""
    release = choice.release
    if release is None:
        return choice.target.backend
    return f"TensorRT {release.tensorrt}" + (f" (JetPack {release.jetpack})" if release.jetpack else "")


def require(report: Report) -> None:
    """Refuse to go on with a blocked target.

    Raises:
        PreflightError: VP400, naming the first blocked rule.
    """
    blocked = [finding for finding in report.findings if finding.verdict is Verdict.BLOCKED]
    if blocked:
        raise PreflightError(
            400,
            f"'{report.target}' is blocked by {blocked[0].rule} ({blocked[0].title})",
            cause=blocked[0].text,
            next_step=blocked[0].mend,
        )
