"""vitprune targets."""

from __future__ import annotations

from typing import Any

from vitprune import console

EXAMPLES = ("targets",)
READY = "can be built here"


def command() -> None:
    """List the targets: what they are, where their runtime comes from, and whether each can be built here."""
    from vitprune import targets
    from vitprune.engines.requirements import require_backend
    from vitprune.errors import TargetError
    from vitprune.support.resources import shipped_targets

    rows: list[list[str]] = []
    listed: list[dict[str, Any]] = []
    causes: dict[str, list[str]] = {}
    for name in shipped_targets():
        target = targets.load(name)
        try:
            require_backend(target)
            state = READY
        except TargetError as error:
            state = f"{error.code}: {error.cause}"
            causes.setdefault(state, []).append(name)
        here = "yes" if state == READY else state.partition(":")[0]
        versions = ", ".join(release.tensorrt for release in target.releases) or "–"
        rows.append([name, here, target.recommended_precision, versions])
        listed.append({**target.model_dump(mode="json"), "state": state})
    console.table("targets", ["target", "engine here", "best precision", "TensorRT"], rows)
    for cause, names in causes.items():
        console.info(f"  {', '.join(names)}: {console.plain(cause)}")
    for entry in listed:
        console.info(f"  [bold]{console.plain(entry['name'])}[/bold] {console.plain(entry['summary'])}")
        console.info(f"    runtime: {console.plain(entry['runtime_source'])}")
        console.info(f"    precision {', '.join(entry['precisions'])}; recommended: {entry['recommended_precision']}")
        for release in entry["releases"]:
            console.info(
                f"    {'JetPack ' + release['jetpack'] + ': ' if release['jetpack'] else ''}TensorRT {release['tensorrt']}"
            )
        if entry["modules"]:
            modules = ", ".join(f"{name} ({module['memory_gib']:g} GB)" for name, module in entry["modules"].items())
            console.info(f"    --module {modules}")
        for purpose, commands in entry["power"].items():
            if commands:
                console.detail(f"    power, {purpose}: {console.plain('; '.join(commands))}")
        for note in entry["notes"]:
            console.detail(f"    {console.plain(note)}")
    ready = sum(row[1] == "yes" for row in rows)
    console.result(f"{len(rows)} targets; engines of {ready} can be built here")
    console.document("targets", {"status": "ok", "exit_code": 0, "targets": listed})
