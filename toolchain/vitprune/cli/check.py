"""vitprune check."""

from __future__ import annotations

from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import BatchOption, BundleArgument, JetpackOption, ModuleOption, SmOption, TensorrtOption

EXAMPLES = ("check out --target jetson-orin",)


def command(
    bundle: BundleArgument,
    target: Annotated[str, typer.Option("--target", "-t", help="Target name (vitprune targets) or YAML file.")],
    jetpack: JetpackOption = None,
    module: ModuleOption = None,
    tensorrt: TensorrtOption = None,
    sm: SmOption = "",
    batch: BatchOption = None,
    workspace: Annotated[str | None, typer.Option(help="Builder memory with its unit, for example 2GiB.")] = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Report only: exit 0 even when blocked.")] = False,
) -> None:
    """Look at a bundle for a target without building: blocked, unverified, likely or verified; exit 1 when blocked."""
    from vitprune import targets
    from vitprune.bundle import open_bundle
    from vitprune.cli.build_engine import parse_batch, parse_memory
    from vitprune.preflight.check import check

    choice = targets.choose(targets.load(target), jetpack=jetpack, module=module, tensorrt=tensorrt)
    choice = choice.with_workspace(parse_memory(workspace))
    report = check(open_bundle(bundle), choice, batch=parse_batch(batch), architecture=sm)
    colours = {"blocked": "bold red", "unverified": "yellow", "likely": "cyan", "verified": "green"}
    for finding in report.findings:
        word = finding.verdict.value
        console.info(f"  [{colours[word]}]{word:<10}[/] {finding.rule} {finding.title}: {console.plain(finding.text)}")
        if finding.mend and word != "verified":
            console.info(f"  {'':<10} [dim]→ {console.plain(finding.mend)}[/dim]")
    for finding in report.findings:
        if finding.warning:
            console.warn(f"{finding.rule}: {console.plain(finding.text)}")
    word = report.verdict.value
    where = f" on {report.module}" if report.module else ""
    console.result(
        f"[{colours[word]}]{word.upper()}[/] {console.plain(report.bundle)} for {console.plain(report.target)}, {report.runtime}{where}"
    )
    console.document("check", report.document())
    if word == "blocked" and not exit_zero:
        raise typer.Exit(1)
