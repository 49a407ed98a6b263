"""Bundles: a folder with the model, its recipe, samples and a manifest of hashes.

    manifest.json   schema, tool version, model, preprocessing, I/O, sha256 of every file below, sha256 of itself
    recipe.yaml     resolved recipe
    model.onnx      the pruned graph
    samples.npz     a few inputs with reference logits, kept patches and decision margins
    engines/<t>/    engines, added by build-engine, listed in the manifest
    reports/        reports, rewritten at will, not listed

A bundle appears under its name only when complete: it is written to a temporary sibling and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitprune.errors import LoadError, RecipeError
from vitprune.recipe import Recipe
from vitprune.support.about import VERSION
from vitprune.support.hashing import sha256_of

SCHEMA = 1
ENGINES = "engines/"


class Manifest(BaseModel):
    """Contents of manifest.json.

    model: where the weights came from (name, arguments, weights kind, seed, sha256) and the geometry. preprocessing: input size,
    mean, std, interpolation, crop. io: input and output names, shapes, types. sites: block and static limit of every prune site.
    files: relative path -> sha256.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    tool_version: str = VERSION
    name: str
    model: dict[str, Any]
    preprocessing: dict[str, Any]
    io: dict[str, Any]
    sites: list[dict[str, Any]]
    recipe_sha256: str
    plugin: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    sha256: str = ""

    def sealed(self) -> Manifest:
        """A copy whose `sha256` covers everything else."""
        return self.model_copy(update={"sha256": self.seal()})

    def seal(self) -> str:
        """Hash of the manifest without its own hash."""
        body = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """The file's exact text."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's contents in one step."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def folder_in_place(output: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `output`; rename it into place when the body succeeds, remove it otherwise.

    Raises:
        RecipeError: VP106 when the output exists and `force` is off, VP107 when it cannot be written.
    """
    check_output(output, force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent))
    except OSError as error:
        raise _unwritable(output, error) from error
    try:
        try:
            yield temporary
            os.chmod(temporary, 0o755)
            old = None
            if output.exists():
                old = output.with_name(f".{output.name}.old-{os.getpid()}")
                os.rename(output, old)
            os.rename(temporary, output)
            if old is not None:
                shutil.rmtree(old)
        except OSError as error:
            raise _unwritable(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_output(output: Path, force: bool) -> None:
    """Refuse an existing output early, before any work is done."""
    if output.exists() and not force:
        raise RecipeError(
            106,
            f"output '{output}' exists",
            cause="nothing is overwritten unless asked",
            next_step="choose another -o, or add --force",
        )
    if output.exists() and not (output / "manifest.json").exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise RecipeError(
            106,
            f"output '{output}' exists and is not a bundle",
            cause="--force only replaces bundles",
            next_step="choose another -o",
        )


def _unwritable(output: Path, error: OSError) -> RecipeError:
    return RecipeError(
        107, f"cannot write '{output}'", cause=f"{error.strerror or error}", next_step="free some space or choose another -o"
    )


class Bundle:
    """An opened bundle whose listed files match their hashes."""

    def __init__(self, path: Path, manifest: Manifest, recipe: Recipe) -> None:
        self.path, self.manifest, self.recipe = path, manifest, recipe

    @property
    def model_path(self) -> Path:
        """model.onnx."""
        return self.path / "model.onnx"

    @property
    def model_files(self) -> list[str]:
        """Names of the ONNX files: model.onnx, or those of a pipeline of several models."""
        return list(self.manifest.io.get("models", ["model.onnx"]))

    def samples(self) -> dict[str, NDArray[Any]]:
        """Arrays of samples.npz: images [n,C,H,W], logits, dense_logits [n,classes], kept_i, margin_i, maybe labels."""
        with np.load(self.path / "samples.npz", allow_pickle=False) as data:
            return {key: data[key] for key in data.files}

    def engine_path(self, target: str) -> Path:
        """Folder of the engine built for a target."""
        return self.path / "engines" / target

    def add_files(self, relative: list[str]) -> None:
        """List (or list anew) files inside the bundle in its manifest."""
        files = dict(self.manifest.files)
        files.update({name: sha256_of(self.path / name) for name in relative})
        self._store(files)

    def list_engine(self, target: str) -> None:
        """Bring the manifest up to date with engines/<target>/, in one step."""
        prefix = f"{ENGINES}{target}/"
        files = {name: digest for name, digest in self.manifest.files.items() if not name.startswith(prefix)}
        found = (path for path in self.engine_path(target).rglob("*") if path.is_file())
        self._store(files | {path.relative_to(self.path).as_posix(): sha256_of(path) for path in found})

    def _store(self, files: dict[str, str]) -> None:
        manifest = self.manifest.model_copy(update={"files": dict(sorted(files.items()))}).sealed()
        write_atomic(self.path / "manifest.json", manifest.text().encode())
        self.manifest = manifest

    def write_report(self, name: str, data: str) -> Path:
        """Write reports/<name>."""
        folder = self.path / "reports"
        try:
            folder.mkdir(exist_ok=True)
            write_atomic(folder / name, data.encode())
        except OSError as error:
            raise _unwritable(folder / name, error) from error
        return folder / name


def seal(folder: Path, manifest: Manifest) -> None:
    """List every file of a freshly written folder and write its manifest."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    listed = {name: sha256_of(folder / name) for name in names if not name.startswith("reports/") and name != "manifest.json"}
    (folder / "manifest.json").write_text(manifest.model_copy(update={"files": listed}).sealed().text(), encoding="utf-8")


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle and verify every listed file, engines excepted: these can be built anew, and are verified where they are used.

    Raises:
        LoadError: VP600 not a bundle, VP601 a file is missing or its hash differs, VP602 written by a newer schema.
    """
    root = Path(path)
    file = root / "manifest.json"
    if not file.is_file():
        raise LoadError(
            600,
            f"'{root}' is not a bundle",
            cause="it has no manifest.json",
            next_step="vitprune export MODEL -r RECIPE -o BUNDLE",
        )
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text)
        newer = isinstance(data, dict) and isinstance(data.get("schema_version"), int) and data["schema_version"] > SCHEMA
        if newer:
            raise LoadError(
                602,
                f"'{root}' has schema {data['schema_version']}",
                cause=f"this vitprune reads schema {SCHEMA}",
                next_step="pip install -U vitprune",
            )
        manifest = Manifest.model_validate(data)
    except (ValueError, ValidationError) as error:
        raise _damaged(root, "manifest.json", "it is not a valid manifest") from error
    if manifest.seal() != manifest.sha256 or manifest.text() != text:
        raise _damaged(root, "manifest.json", "its own sha256 does not match")
    for name, digest in manifest.files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts or (root / name).is_symlink():
            raise _damaged(root, name, "it points outside the bundle")
        if not name.startswith(ENGINES) and (why := damage(root / name, digest)):
            raise _damaged(root, name, why)
    recipe = Recipe.load(yaml.safe_load((root / "recipe.yaml").read_text(encoding="utf-8")))
    return Bundle(root, manifest, recipe)


def damage(file: Path, digest: str) -> str:
    """What is wrong with a listed file, or ""."""
    if not file.is_file():
        return "it is missing"
    return "" if sha256_of(file) == digest else "its sha256 does not match the manifest"


def _damaged(root: Path, name: str, cause: str) -> LoadError:
    return LoadError(
        601, f"bundle '{root}' is damaged: {name}", cause=cause, next_step="export the bundle again, or copy it again"
    )
