"""vitprune validate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import BundleArgument, DataOption
from vitprune.errors import RecipeError

EXAMPLES = (
    "validate out",
    "validate out --reference torch --data images --junit junit.xml",
    "validate out --target onnxruntime-cpu --json",
    "validate out --target rtx --reference target:onnxruntime-cpu",
)


def command(
    bundle: BundleArgument,
    backend: Annotated[
        str | None, typer.Option(help="What to run the bundle on; default: the target's, without one onnxruntime.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Validate the engine of this target.")] = None,
    reference: Annotated[
        str,
        typer.Option(
            help="auto, torch (live), stored (the bundle's samples), or another runtime: a backend, or target:NAME for an engine."
        ),
    ] = "auto",
    data: DataOption = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint of the live reference.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Number of images instead of the recipe's.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit XML file.")] = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Report only: exit 0 even when a gate fails.")] = False,
    foreign_code: Annotated[
        bool, typer.Option("--foreign-code", help="Let the bundle's engine load native code that was not built on this machine.")
    ] = False,
) -> None:
    """Compare a bundle with its reference and enforce the recipe's gates; exit 1 when one fails."""
    from vitprune import backends, targets
    from vitprune.bundle import open_bundle, write_atomic
    from vitprune.cli._render import verdict as render
    from vitprune.pipelines import validate
    from vitprune.reports.junit import junit_xml
    from vitprune.support import json_text

    known = ("auto", "torch", "stored", *(name.replace("_", "-") for name in backends.names()), *backends.names())
    if reference not in known and not reference.startswith("target:"):
        raise RecipeError(
            199,
            f"--reference '{reference}'",
            cause="it is auto, torch, stored, a backend or target:NAME",
            next_step="vitprune validate --help",
        )
    opened = open_bundle(bundle, foreign_code)
    if backend is None:
        built = target is not None and opened.engine_path(target).is_dir()  # without one, that is what the error says
        backend = targets.load(str(target)).backend if built else "onnxruntime"
    with console.step("validate") as step:
        outcome = validate(
            opened,
            backend=backend,
            target=target,
            reference=reference,
            data=data,
            weights=weights,
            samples=samples,
            report=step.update,
        )
    try:
        opened.write_report("validate.json", json_text.written(outcome.document()))
    except RecipeError as error:  # a bundle that cannot be written can be validated all the same
        console.warn(f"the report is not kept: {error.message}: {error.cause}")
    if junit is not None:
        try:
            write_atomic(junit, junit_xml([{"command": "validate", **outcome.document()}]).encode())
        except OSError as error:
            raise RecipeError(
                107, f"cannot write '{junit}'", cause=error.strerror or str(error), next_step="choose another --junit"
            ) from error
    render(outcome)
    console.document("validate", outcome.document())
    if not outcome.passed and not exit_zero:
        raise typer.Exit(1)
