"""vitprune inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune import console
from vitprune.cli._common import BundleArgument, DataOption, ModuleOption

EXAMPLES = ("inspect out", "inspect out --target jetson-orin --module agx-64 --batch 8")


def command(
    bundle: BundleArgument,
    precision_sensitivity: Annotated[
        bool,
        typer.Option("--precision-sensitivity", help="What each layer alone costs in the bundle's int8 or fp8; needs --data."),
    ] = False,
    data: DataOption = None,
    samples: Annotated[int, typer.Option(help="Images for --precision-sensitivity.", min=1)] = 128,
    weights: Annotated[
        str | None, typer.Option(help="Checkpoint of the model, where the bundle names a file that is not here.")
    ] = None,
    target: Annotated[
        str, typer.Option("--target", "-t", help="Whose kernels are counted, dense against pruned.")
    ] = "onnxruntime-cpu",
    module: ModuleOption = None,
    batch: Annotated[int, typer.Option(help="Images in one run, for the launch model of a --module.", min=1)] = 1,
    plot: Annotated[
        Path | None, typer.Option(help="Write the sensitivities as a bar chart, .png or .svg (extra 'plots').")
    ] = None,
) -> None:
    """Show what a bundle holds: anatomy, token and MAC curve, kernels it starts, files, engines and what they compute with."""
    from vitprune import targets
    from vitprune.bundle import open_bundle
    from vitprune.exporting.inspecting import inspect, launches

    if precision_sensitivity:
        _sensitivity(bundle, data, samples, weights, plot)
        return
    opened, choice = open_bundle(bundle), targets.choose(targets.load(target), module=module)
    found = {**inspect(opened), "launches": launches(opened, choice, batch)}
    size = found["geometry"]
    console.info(
        f"[bold]{console.plain(found['name'])}[/bold]: {size['depth']} blocks, {size['patches']} patches and {size['prefix']} prefix tokens, "
        f"width {size['width']}, {size['heads']} heads, {size['classes']} classes; {found['shapes']} shapes, {found['precision']}"
    )
    limits = {site["block"]: site for site in found["sites"]}
    rows = []
    for block in found["blocks"]:
        site = limits.get(block["block"])
        kept = f"{site['kept_mean']:.1f} of {site['limit']}" if site else ""
        share = block["macs"] / block["dense_macs"]
        bar = "█" * round(20 * share)
        rows.append(
            [str(block["block"]), f"{block['entering']:.1f}", kept, f"{block['macs'] / 1e6:.1f} M", f"{share:4.0%} {bar:<20}"]
        )
    console.table(
        "tokens and MACs per image, means of the stored samples", ["block", "tokens in", "patches kept", "MACs", "of dense"], rows
    )
    console.info(console.macs_line(**found["macs"]))
    _launches(found["launches"])
    console.table("files", ["file", "KiB"], [[name, f"{bytes_ / 1024:.1f}"] for name, bytes_ in found["files"].items()])
    for name, engine in found["engines"].items():
        facts = engine.get("facts", {})
        console.info(
            f"engine [bold]{console.plain(name)}[/bold]: {console.plain(facts.get('runtime', engine.get('backend')))}, "
            f"batch {console.plain(engine.get('batch', ''))}, {console.plain(engine.get('engine_bytes', '?'))} bytes"
        )
        if engine["state"] != "whole":
            console.warn(f"the engine '{name}' is not as it was built: {engine['state']}")
        shown = (
            "architecture",
            "gpu",
            "graph",
            "layers",
            "layers_by_precision",
            "quantising_layers",
            "precision_audit",
            "plugin",
            "trtexec",
        )
        for key in shown:
            if facts.get(key):
                console.info(f"  {key}: {console.plain(facts[key])}")
    macs = found["macs"]
    console.result(
        f"[bold]{console.plain(found['name'])}[/bold]: {macs['ratio']:.2f}x the MACs of the dense model, "
        f"{len(found['engines'])} {'engine' if len(found['engines']) == 1 else 'engines'}"
    )
    console.document("inspect", {"status": "ok", "exit_code": 0, **found})


def _launches(found: dict[str, Any]) -> None:
    """The table of `exporting.inspecting.launches`."""
    if found["unknown"]:
        console.info(f"kernels on {console.plain(found['target'])} are not counted: {console.plain(found['unknown'])}")
        return
    rows = [[_place(one["block"]), *_counts(one["dense"]), *_counts(one["pruned"])] for one in found["blocks"]]
    rows.append(["all", *_counts(found["dense"]), *_counts(found["pruned"])])
    heads = ["block", "dense: products", "attention", "glue", "pruned: products", "attention", "glue"]
    console.table(f"kernels started on {console.plain(found['target'])}; glue is everything else", heads, rows)
    if found["model"]:
        where = " ".join(filter(None, (found["target"], found["module"])))
        console.info(f"on {console.plain(where)}, {found['model']['text']}")
    if plugin := found["plugin"]:
        less = ", ".join(f"{count} {name}" for name, count in plugin["pruned"].items())
        modelled = f"; {plugin['model']['text']}" if plugin["model"] else ""
        sites = f"{plugin['sites']} {'site' if plugin['sites'] == 1 else 'sites'}"
        console.info(f"with --sites plugin ({sites} as plugin nodes): {less}{modelled}")


def _place(block: int) -> str:
    return "before" if block < 0 else str(block)


def _counts(kernels: dict[str, int]) -> list[str]:
    return [str(kernels[name]) for name in ("products", "attention", "glue")]


def _sensitivity(bundle: Path, data: Path | None, samples: int, weights: str | None, plot: Path | None) -> None:
    """The table of `exporting.sensitivity`, and its plot."""
    from vitprune.exporting.sensitivity import of_bundle
    from vitprune.pipelines import open_bundle
    from vitprune.reports.sensitivity import draw

    opened = open_bundle(bundle)
    with console.step("sensitivity") as step:
        found = of_bundle(opened, data, samples, weights, step.update)
    most = max((one.error for one in found.costs), default=0.0) or 1.0
    rows = [
        [
            one.layer,
            f"{one.error:.2%}",
            "█" * round(20 * one.error / most),
            str(one.top1_changed),
            str(one.images_deciding_otherwise),
        ]
        for one in [found.whole, *found.costs]
    ]
    console.table(
        f"layers alone in {found.mode}, the others in fp32, on {found.images} images",
        ["layer", "logits' error", "", "top-1 changed", "other patches kept"], rows,
    )  # fmt: skip
    if plot is not None:
        draw(found, plot)
        console.info(f"plot: {console.plain(plot)}")
    chosen = ", ".join(found.exclude) or "nothing"
    console.result(
        f"{'meets' if found.met else 'does not meet'} precision.agreement with {console.plain(chosen)} left out: "
        f"the top-1 of {found.agreement:.1%} of the images is fp32's"
    )
    console.document("inspect", {"status": "ok", "exit_code": 0, "sensitivity": found.document()})
