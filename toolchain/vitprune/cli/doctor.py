"""vitprune doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune import console

EXAMPLES = ("doctor",)


def command(
    root: Annotated[Path, typer.Option(hidden=True, help="Where the system's files lie.")] = Path("/"),
) -> None:
    """Show what is installed, which targets can be built here, and on a Jetson the module, JetPack and power mode."""
    from vitprune.reports.doctor import examine

    found = examine(root)
    console.table("machine", ["what", "found"], _machine(found))
    console.table("packages", ["package", "version", "for"], _packages(found))
    console.table("tools", ["tool", "version", "where"], _tools(found))
    rows = [[state["name"], _yes(state["engine"]), state["reason"]] for state in found["targets"]]
    console.table("targets", ["target", "engine here", "why not"], rows)
    plugin = found["plugin"]
    count = len(plugin["built"])
    console.info(f"plugin library: {f'built, {count} in the cache' if count else 'not built yet: vitprune plugins build'}")
    if plugin["reason"]:
        console.info(f"  it cannot be built here: {console.plain(plugin['reason'])}")
    ready = [state["name"] for state in found["targets"] if state["engine"]]
    console.result(f"engines that can be built here: {', '.join(ready) or 'none'}")
    console.document("doctor", {"status": "ok", "exit_code": 0, **found, "environment_schema": found["schema_version"]})


def _machine(found: dict[str, Any]) -> list[list[str]]:
    rows = [
        ["system", f"{found['system']}, {found['machine']}, {found['cpus']} CPUs"],
        ["python", f"{found['python']['version']} ({found['python']['executable']})"],
    ]
    rows += [["GPU", f"{gpu['name']}, compute capability {gpu.get('compute_cap', '?')}"] for gpu in found["gpus"]]
    if not found["gpus"]:
        rows.append(["GPU", "none that nvidia-smi knows"])
    jetson = found["jetson"]
    if jetson:
        release = f"L4T {jetson['l4t'] or 'unknown'}, JetPack {jetson['jetpack'] or 'not in the table'}"
        rows += [
            ["Jetson", f"{jetson['model']} ({jetson['family'] or 'unknown'})"],
            ["release", f"{release}, TensorRT {jetson['tensorrt'] or 'unknown'}"],
            ["power mode", found["power_mode"] or found["power"]["nvpmodel"].get("missing", "unknown")],
        ]
    return rows


def _packages(found: dict[str, Any]) -> list[list[str]]:
    from vitprune.environment.packages import PURPOSE

    rows = [[name, version or "-", PURPOSE[name]] for name, version in found["packages"].items()]
    if found["providers"]:
        rows.append(["ONNX Runtime's providers", "", ", ".join(found["providers"])])
    return rows


def _tools(found: dict[str, Any]) -> list[list[str]]:
    rows = [[name, tool["version"], tool["path"]] if tool else [name, "-", ""] for name, tool in found["programs"].items()]
    headers = found["tensorrt_headers"]
    return [*rows, ["TensorRT headers", headers["version"], headers["folder"]] if headers else ["TensorRT headers", "-", ""]]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
