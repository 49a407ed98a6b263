"""Start of a device package; shipped at its root as run.py, so it stands alone: Python >= 3.10 and its standard library.

It verifies the package before anything in it is imported, then hands over to the driver inside the package. Python puts the folder
of a script first where it looks for modules: that is taken away before the first import that could find something there.
"""

import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]

import argparse
import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

KIND = "vitprune device package"
SCHEMA = 1
MANIFEST = "package.json"
# What a run leaves at the root, besides the files that the manifest lists; nothing else may lie there: it could be imported or run.
OWN = ("out", "out-rehearsal", "plugin-cache")
UNDER_WAY = ".vitprune-tmp"


class Refused(Exception):
    """The package is not run; the attributes are those of every vitprune error."""

    def __init__(self, code: str, message: str, cause: str, next_step: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.cause, self.next_step = code, message, cause, next_step


def seal(manifest: dict[str, Any]) -> str:
    """Hash of a package manifest without its own hash."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def verify(root: Path) -> dict[str, Any]:
    """Check every file of an unpacked package.

    Returns:
        The package's manifest.

    Raises:
        Refused: VP640 no package, VP641 damaged or changed, VP642 a file that does not belong, VP643 written by a newer version.
    """
    manifest = _manifest(root)
    for name, digest in manifest["files"].items():
        file = root / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or _linked(root, name):
            raise _changed(name, "it points outside the package")
        if not file.is_file():
            raise _changed(name, "it is missing")
        if sha256_of(file) != digest:
            raise _changed(name, f"its sha256 is not the one in {MANIFEST}")
    if strange := next(_strange(root, {MANIFEST, *manifest["files"]}), ""):
        raise Refused(
            "VP642", f"'{strange}' does not belong to the package", f"{MANIFEST} does not list it",
            "remove it, or unpack the package anew",
        )  # fmt: skip
    return manifest


def _strange(root: Path, listed: set[str]) -> Iterator[str]:
    """Files and links that are not listed; what runs left at the root is not looked into."""
    for place, folders, names in os.walk(root):
        if Path(place) == root:
            folders[:] = [
                name for name in folders if (name not in OWN and not name.endswith(UNDER_WAY)) or (root / name).is_symlink()
            ]
        for name in sorted([*folders, *names]):
            file = Path(place) / name
            relative = file.relative_to(root).as_posix()
            if (name in names or file.is_symlink()) and relative not in listed:
                yield relative


def _linked(root: Path, name: str) -> bool:
    """Whether a file or a folder on the way to it is a symbolic link."""
    parts = PurePosixPath(name).parts
    return any(root.joinpath(*parts[: count + 1]).is_symlink() for count in range(len(parts)))


def check_machine(manifest: dict[str, Any], here: str) -> None:
    """Refuse a machine of another kind than the one the package's engine is for.

    Raises:
        Refused: VP644.
    """
    wanted = manifest["machine"]
    if wanted not in ("", here):
        raise Refused(
            "VP644",
            f"the package '{manifest['name']}' cannot build its engine here",
            f"its target '{manifest['job']['target']['name']}' has the processor {wanted} and this machine is {here}; "
            "an engine is built on the device that runs it",
            f"take the package to such a device ({wanted}), or try it here with: ./run.sh --rehearse",
        )


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def show(code: str, message: str, cause: str, next_step: str) -> None:
    """Print an error the way the command line does."""
    print(f"error {code} {_harmless(message)}", file=sys.stderr)
    for label, text in (("cause", cause), ("next", next_step)):
        if text:
            print(f"  {label:<5} {_harmless(text)}", file=sys.stderr)


def _harmless(text: str) -> str:
    """Text of which a terminal obeys nothing."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def arguments(given: list[str]) -> argparse.Namespace:
    """The options of run.sh."""
    parser = argparse.ArgumentParser(prog="run.sh", description="Build, validate and time this package's engine on this device.")
    parser.add_argument("--rehearse", action="store_true", help="ONNX Runtime on the CPU in place of TensorRT; builds no engine")
    parser.add_argument(
        "--plugin", choices=["auto", "skip", "require"], default="auto", help="the native library (default: auto)"
    )
    parser.add_argument(
        "--kept-outputs", action="store_true", help="the engine also gives the kept patches: decisions are validated"
    )
    parser.add_argument(
        "--profile-tokens", action="store_true", help="also measure a latency table (latency-table.json) for vitprune tune"
    )
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the benchmark, at least (default: 20)")
    parser.add_argument("--require-locked-clocks", action="store_true", help="refuse to time with clocks that are not held")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for the engine build (default: 3600)")
    parser.add_argument("--verify", action="store_true", help="only verify the package")
    options = parser.parse_args(given)
    if options.rounds < 1 or not (math.isfinite(options.timeout) and 0 < options.timeout <= 30 * 24 * 3600):
        parser.error("--rounds and --timeout are positive, and a timeout at most 30 days")
    return options


def main(root: Path, given: list[str], machine: str = "") -> int:
    """Verify, then run; returns the exit code: 0 fine, 1 a gate failed, 2 could not run."""
    options = arguments(given)
    try:
        manifest = verify(root)
        if not options.rehearse and not options.verify:
            check_machine(manifest, machine or platform.machine())
    except Refused as refusal:
        show(refusal.code, refusal.message, refusal.cause, refusal.next_step)
        return 2
    print(f"package {manifest['name']}: {len(manifest['files'])} files verified", file=sys.stderr)
    if options.verify:
        return 0
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # child processes too: a compiled file would be one that nothing lists
    sys.path.insert(0, str(root / "lib"))
    from vitprune.device.driver import run

    return run(root, manifest, options, show)


def _manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(
            "VP640", f"'{root}' is not a device package", f"{MANIFEST}: {error.strerror}", "unpack the whole .tar again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _changed(MANIFEST, "it is not JSON") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema_version", 0), int) or manifest.get("kind") != KIND:
        raise Refused("VP640", f"'{root}' is not a device package", f"{MANIFEST} is of another kind", "unpack the .tar again")
    if manifest.get("schema_version", 0) > SCHEMA:
        raise Refused(
            "VP643", "the package is newer than its driver", f"schema {manifest['schema_version']}, known {SCHEMA}",
            "unpack the .tar into an empty folder",
        )  # fmt: skip
    if seal(manifest) != manifest.get("sha256"):
        raise _changed(MANIFEST, "its own sha256 does not match")
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not all(isinstance(digest, str) for digest in listed.values()):
        raise _changed(MANIFEST, "it lists no files")
    return manifest


def _changed(name: str, cause: str) -> Refused:
    return Refused("VP641", f"the package is damaged or was changed: {name}", cause, "copy and unpack the .tar again")


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:]))
