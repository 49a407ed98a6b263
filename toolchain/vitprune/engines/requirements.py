"""What a target must have before an engine is built for it here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from vitprune import backends
from vitprune.errors import RecipeError, TargetError
from vitprune.support.suggestions import did_you_mean
from vitprune.support.versions import Version

if TYPE_CHECKING:  # a device package builds engines where there is no pydantic
    from vitprune.targets import Choice, Target


def require_backend(target: Target) -> Any:
    """The target's backend module.

    Raises:
        TargetError: VP210 when this version has no such backend, VP211 when it is not installed.
    """
    if target.backend not in backends.names():
        raise TargetError(
            210,
            f"engines for '{target.name}' cannot be built by this version",
            cause=f"the '{target.backend}' backend and the device package are missing"
            + (": engines for this device must be built on it" if target.builds_on == "device" else ""),
            next_step="vitprune build-engine BUNDLE --target rtx, or take model.onnx to the device and build it with trtexec",
        )
    backend = backends.get(target.backend)
    if why := backend.missing():
        raise TargetError(
            211,
            f"target '{target.name}' cannot be built here",
            cause=why,
            next_step="pip install 'vitprune[rtx]'" if target.backend == "tensorrt_rtx" else "vitprune doctor",
        )
    return backend


def require_precision(target: Target, mode: str, asked: str | None = None) -> None:
    """Refuse a number type that the target does not compute with, or that is not the bundle's.

    Args:
        target: the target. mode: the bundle's precision. asked: what the user says it is, None for nothing.

    Raises:
        TargetError: VP246 the hardware lacks it. RecipeError: VP116 the bundle has another precision, or there is no such precision.
    """
    from vitprune.targets import SINCE, Precision, lacking

    known = get_args(Precision)
    if asked is not None and asked not in known:
        raise RecipeError(
            116,
            f"unknown precision '{asked}'",
            cause=did_you_mean(asked, known),
            next_step="leave --precision out: the graph carries its types",
        )
    wanted = asked or mode
    if target.backend.startswith("tensorrt") and wanted not in target.precisions:
        raise TargetError(
            246,
            f"'{target.name}' does not compute with {wanted}",
            cause=f"its hardware has {', '.join(target.precisions)}",
            next_step="vitprune export MODEL -r RECIPE -o BUNDLE --set precision.mode=fp16",
        )
    capabilities = [] if target.architectures == "auto" else target.architectures
    if target.backend.startswith("tensorrt") and capabilities and lacking(wanted, capabilities) == capabilities:
        raise TargetError(
            246,
            f"SM {', '.join(capabilities)} does not compute with {wanted}",
            cause=f"{wanted} needs SM {SINCE[wanted]}",
            next_step="vitprune export MODEL -r RECIPE -o BUNDLE --set precision.mode=fp16, or --sm of another device",
        )
    if asked is not None and asked != mode:
        raise RecipeError(
            116,
            f"the bundle is in {mode}, not in {asked}",
            cause="TensorRT has no precision flags any more: an engine computes in the types that the graph carries",
            next_step=f"vitprune export MODEL -r RECIPE -o BUNDLE --set precision.mode={asked}",
        )


def require_release(choice: Choice, backend: Any) -> None:
    """Refuse to build here for a TensorRT that was asked for and is not the one of this machine: nothing else could build it.

    Raises:
        TargetError: VP213.
    """
    stated = choice.runtime_version if choice.release_stated else None
    here = Version.find(backend.version())
    if stated is not None and here is not None and not here.starts_with_minor_of(stated):
        raise TargetError(
            213,
            f"this machine has TensorRT {here}, not {stated}",
            cause="an engine belongs to the TensorRT that built it",
            next_step="leave --tensorrt and --jetpack out, or --remote user@host of the machine that has it",
        )
