"""vitprune inspect."""

from __future__ import annotations

from vitprune import console
from vitprune.cli._common import BundleArgument


def command(bundle: BundleArgument) -> None:
    """Show what a bundle holds: anatomy, token and MAC curve, files, engines and what they compute with."""
    from vitprune.bundle import open_bundle
    from vitprune.exporting.inspecting import inspect

    found = inspect(open_bundle(bundle))
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
    console.table("files", ["file", "KiB"], [[name, f"{bytes_ / 1024:.1f}"] for name, bytes_ in found["files"].items()])
    for name, engine in found["engines"].items():
        facts = engine.get("facts", {})
        console.info(
            f"engine [bold]{console.plain(name)}[/bold]: {console.plain(facts.get('runtime', engine.get('backend')))}, "
            f"batch {console.plain(engine.get('batch', ''))}, {console.plain(engine.get('engine_bytes', '?'))} bytes"
        )
        if engine["state"] != "whole":
            console.warn(f"the engine '{name}' is not as it was built: {engine['state']}")
        shown = ("architecture", "gpu", "graph", "layers", "layers_by_precision", "precision_audit", "plugin", "trtexec")
        for key in shown:
            if facts.get(key):
                console.info(f"  {key}: {console.plain(facts[key])}")
    console.document("inspect", {"status": "ok", "exit_code": 0, **found})
