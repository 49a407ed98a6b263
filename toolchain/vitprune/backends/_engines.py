"""The engine of a bundle that a session is to run, with its facts checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.errors import LoadError
from vitprune.support import files, json_text

if TYPE_CHECKING:
    from vitprune.bundle import Bundle

FACTS = "engine.json"
PLUGIN = "libvitprune_plugin.so"
PLUGIN_FACTS = ("file", "sha256", "name", "version", "namespace")


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file and its engine.json ({} where there is none beside it).

    foreign: whether native code beside or inside it may be loaded although it was not built on this machine.
    """

    path: Path
    document: dict[str, Any]
    foreign: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What the builder reported."""
        found = self.document.get("facts", {})
        return found if isinstance(found, dict) else {}


def find(bundle: Bundle, backend: str, target: str | None = None) -> BuiltEngine:
    """The engine that a backend built into a bundle, verified: nothing that the manifest does not list is touched.

    Args:
        bundle: an opened bundle.
        backend: name of the backend module.
        target: name of the target, needed only when several targets of the backend were built.

    Raises:
        LoadError: VP630 none was built, VP631 several and no target given, VP638 its engine.json cannot be read, VP639 it was built
            from another model.onnx, VP629 a file of it is damaged, is a link or is not listed in the manifest.
    """
    for name in built_targets(bundle.path):
        if target in (None, name):
            _require_whole(bundle, name)
    built = list_engines(bundle.path)
    fitting = {name: one for name, one in built.items() if one.document.get("backend") == backend and target in (None, name)}
    if not fitting:
        others = ", ".join(sorted(built)) or "none"
        raise LoadError(
            630,
            f"the bundle has no engine of '{target or backend}'" + (f" for the backend '{backend}'" if target in built else ""),
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
    return replace(engine, foreign=bool(getattr(bundle, "foreign_code", False)))


def given(path: Path) -> BuiltEngine:
    """An engine file that was named: who names it means it. An engine.json beside it is obeyed, and may be missing."""
    facts = path.parent / FACTS
    return BuiltEngine(path, read(facts).document if facts.is_file() else {}, foreign=True)


def built_targets(bundle: Path) -> list[str]:
    """Names of the folders in engines/; what is under way there has a dot in front."""
    return sorted(path.name for path in bundle.glob("engines/*") if not path.name.startswith(".") and path.name != "__pycache__")


def state(bundle: Bundle, target: str, but: str = "") -> str:
    """What is wrong with the files of an engine, or ""; `but` names a file whose contents somebody else looks at."""
    from vitprune.bundle import damage, unlisted

    if strange := unlisted(bundle.path, bundle.manifest, target):
        return f"{strange}: the manifest does not list it"
    for name, digest in bundle.manifest.files.items():
        ours = name.startswith(f"engines/{target}/") and name != but
        if ours and (why := damage(bundle.path / name, digest)):
            return f"{name}: {why}"
    return ""


def _require_whole(bundle: Bundle, target: str) -> None:
    """Verify an engine's files; of the plugin library, whose hash engine.json has, the session has more to say.

    Raises:
        LoadError: VP629.
    """
    if why := state(bundle, target, but=f"engines/{target}/{PLUGIN}"):
        raise LoadError(
            629,
            f"the engine for '{target}' is damaged: {why.split(': ')[0]}",
            cause=why.partition(": ")[2],
            next_step=f"vitprune build-engine BUNDLE --target {target} --force",
        )


def list_engines(bundle: Path) -> dict[str, BuiltEngine]:
    """Engines of a bundle by target name.

    Raises:
        LoadError: VP638 when an engine.json cannot be read.
    """
    places = ((name, bundle / "engines" / name / FACTS) for name in built_targets(bundle))
    return {name: read(path) for name, path in places if path.is_file()}


def read(path: Path) -> BuiltEngine:
    """An engine.json and the engine it describes.

    Raises:
        LoadError: VP638 when it cannot be read, or names anything but files beside it.
    """
    try:
        document = json_text.parse(files.read_text(path))
        if not isinstance(document, dict) or not isinstance(document.get("facts", {}), dict):
            raise ValueError("it is not what build-engine writes")
        engines, plugin = document["engine"], document.get("facts", {}).get("plugin")
        listed = engines if isinstance(engines, list) and engines else [engines]
        if plugin is not None and not (isinstance(plugin, dict) and set(PLUGIN_FACTS) <= set(plugin)):
            raise ValueError("its plugin is not described")
        for name in [*listed, *([plugin["file"]] if plugin else [])]:
            if not files.plain_name(name):
                raise ValueError(f"'{name}' is not the plain name of a file beside it")
        return BuiltEngine(path.parent / listed[0], document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            638,
            f"'{path}' cannot be read",
            cause=f"{type(error).__name__}: {error}",
            next_step="build the engine again with --force",
        ) from error
