"""vitprune targets."""

from __future__ import annotations

from vitprune import console

EXAMPLES = ("targets",)


def command() -> None:
    """List the targets: what they are, where their runtime comes from, and whether each can be built here."""
    from vitprune import targets
    from vitprune.engines import require_backend
    from vitprune.errors import TargetError
    from vitprune.support.resources import shipped_targets

    rows, listed = [], []
    for name in shipped_targets():
        target = targets.load(name)
        try:
            require_backend(target)
            state = "can be built here"
        except TargetError as error:
            state = f"{error.code}: {error.cause}"
        rows.append([name, target.summary, state])
        listed.append({**target.model_dump(mode="json"), "state": state})
    console.table("targets", ["target", "what", "here"], rows)
    for entry in listed:
        console.info(f"  [bold]{console.plain(entry['name'])}[/bold] runtime: {console.plain(entry['runtime_source'])}")
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
    console.document("targets", {"targets": listed})
