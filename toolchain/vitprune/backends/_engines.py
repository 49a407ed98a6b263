"""The engine of a bundle that a session is to run, with its facts checked before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.errors import LoadError

if TYPE_CHECKING:
    from vitprune.bundle import Bundle

FACTS = "engine.json"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file and its engine.json ({} where there is none beside it)."""

    path: Path
    document: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What the builder reported."""
        found = self.document.get("facts", {})
        return found if isinstance(found, dict) else {}


def find(bundle: Bundle, backend: str, target: str | None = None) -> BuiltEngine:
    """The engine that a backend built into a bundle.

    Args:
        bundle: an opened bundle.
        backend: name of the backend module.
        target: name of the target, needed only when several targets of the backend were built.

    Raises:
        LoadError: VP630 none was built, VP631 several and no target given, VP638 its engine.json cannot be read, VP639 it was built
            from another model.onnx, VP629 a file of it is damaged.
    """
    built = list_engines(bundle.path)
    fitting = {name: one for name, one in built.items() if one.document.get("backend") == backend and target in (None, name)}
    if not fitting:
        others = ", ".join(sorted(built)) or "none"
        raise LoadError(
            630,
            f"the bundle has no engine of '{target or backend}'",
            cause=f"engines in it: {others}",
            next_step=f"vitprune build-engine BUNDLE --target {target or 'TARGET'} on the device that runs it",
        )
    if len(fitting) > 1:
        raise LoadError(
            631,
            f"the bundle has several engines for '{backend}'",
            cause=", ".join(sorted(fitting)),
            next_step=f"--target {sorted(fitting)[0]}",
        )
    name, engine = next(iter(fitting.items()))
    if engine.document.get("model_sha256") != bundle.manifest.files.get("model.onnx"):
        raise LoadError(
            639,
            f"the engine for '{name}' is not of this model",
            cause="model.onnx changed after the engine was built",
            next_step=f"vitprune build-engine BUNDLE --target {name} --force",
        )
    _require_whole(bundle, name, engine)
    return engine


def _require_whole(bundle: Bundle, target: str, engine: BuiltEngine) -> None:
    """Verify an engine's files; of a plugin library the session knows more to say.

    Raises:
        LoadError: VP629.
    """
    from vitprune.bundle import damage

    plugin = (engine.facts.get("plugin") or {}).get("file")
    for name, digest in bundle.manifest.files.items():
        ours = name.startswith(f"engines/{target}/") and Path(name).name != plugin
        if ours and (why := damage(bundle.path / name, digest)):
            raise LoadError(
                629,
                f"the engine for '{target}' is damaged: {name}",
                cause=why,
                next_step=f"vitprune build-engine BUNDLE --target {target} --force",
            )


def list_engines(bundle: Path) -> dict[str, BuiltEngine]:
    """Engines of a bundle by target name.

    Raises:
        LoadError: VP638 when an engine.json cannot be read.
    """
    return {path.parent.name: read(path) for path in sorted(bundle.glob(f"engines/*/{FACTS}"))}


def read(path: Path) -> BuiltEngine:
    """An engine.json and the engine it describes.

    Raises:
        LoadError: VP638 when it cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return BuiltEngine(path.parent / str(document["engine"]), document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            638,
            f"'{path}' cannot be read",
            cause=f"{type(error).__name__}: {error}",
            next_step="build the engine again with --force",
        ) from error
