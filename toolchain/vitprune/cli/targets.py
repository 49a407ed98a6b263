"""vitprune targets."""

from __future__ import annotations

from vitprune import console


def command() -> None:
    """List the targets and whether each can be built here."""
    from vitprune import targets
    from vitprune.engines import require_backend
    from vitprune.errors import TargetError
    from vitprune.resources import shipped_targets

    rows, listed = [], []
    for name in shipped_targets():
        target = targets.load(name)
        try:
            require_backend(target)
            state = "can be built here"
        except TargetError as error:
            state = f"{error.code}: {error.cause}"
        rows.append([name, target.summary, state])
        listed.append({"name": name, "summary": target.summary, "backend": target.backend, "state": state})
    console.table("targets", ["target", "what", "here"], rows)
    console.document("targets", {"targets": listed})
