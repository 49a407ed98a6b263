"""What build-engine says about a device package and the run on the device."""

from __future__ import annotations

from typing import Any

from vitprune import console
from vitprune.errors import TargetError

_MARKS = {"passed": "[green]✓[/green]", "failed": "[red]✗[/red]", "skipped": "[dim]–[/dim]"}


def packaged(package: dict[str, Any], result: dict[str, Any] | None, require_engine: bool) -> int:
    """Show a package and, where it was run, the run's result; returns the exit code.

    Raises:
        TargetError: VP232 when an engine is required and there is none.
    """
    for name, finding in package["findings"].items():
        console.info(f"  {_MARKS[finding['status']]} {name.replace('_', '-')}: {console.plain(finding['detail'])}")
    console.info(
        f"package {console.plain(package['path'])} ({package['package_bytes'] / 2**20:.1f} MiB, {package['files']} files)"
    )
    engine = result is not None and result["mode"] == "device"
    if require_engine and not engine:
        raise TargetError(
            232,
            f"there is no engine for '{package['target']}'",
            cause=f"{package['status']}: {package['path']}" if result is None else "a rehearsal builds none",
            next_step="unpack the package on the device and start its run.sh, or --remote user@host",
        )
    if package["stated"]:
        console.info(f"made for {console.plain(', '.join(f'{name} {value}' for name, value in package['stated'].items()))}")
    if result is None and package["engine_there"]:
        console.info("the engine that is there stays until the one of this package comes back")
    if result is None:
        console.info("evidence: the graph as validated in the bundle; nothing was run on the device")
        console.result(f"status: {console.plain(package['status'])}: unpack it there and start run.sh, or --remote user@host")
        console.document("build-engine", {"status": package["status"], "exit_code": 0, "package": package})
        return 0
    again = " (it had finished before)" if result["repeated"] else ""
    what = "engine built on the device" if engine else "rehearsed, engine to be built on the device"
    if differs := result.get("differs"):
        console.warn(differs)
    if engine and not result["engine_stored"]:
        console.warn("the engine failed its gates; the one that was there stays, the reports are the new ones")
    console.result(
        f"status: {what}, validation {console.plain(result['status'])}{again}; {console.plain(result['runtime'])}; evidence: {console.plain(result['evidence'])}"
    )
    code = int(result["exit_code"])
    console.document("build-engine", {"status": what, "exit_code": code, "package": package, "result": result})
    return code
