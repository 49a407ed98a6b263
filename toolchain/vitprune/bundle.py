"""Bundles: a folder with the model, its recipe, samples and a manifest of hashes.

    manifest.json   schema, tool version, model, preprocessing, I/O, sha256 of every file below, sha256 of itself
    recipe.yaml     resolved recipe
    model.onnx      the pruned graph
    samples.npz     a few inputs with reference logits, kept patches and decision margins
    dense.skeleton  the dense graph, whose weights are those in model.onnx
    provenance.json versions, git commit and command that made it
    engines/<t>/    engines, added by build-engine, listed in the manifest
    reports/        reports, rewritten at will, not listed

A bundle appears under its name only when complete (`bundle_parts.output`); its manifest changes under a lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitprune.bundle_parts.manifest import Manifest, damaged, read_manifest
from vitprune.bundle_parts.output import check_output as check_output
from vitprune.bundle_parts.output import folder_in_place as folder_in_place
from vitprune.bundle_parts.output import unwritable
from vitprune.bundle_parts.provenance import PROVENANCE, provenance
from vitprune.errors import LoadError, RecipeError
from vitprune.recipe import Recipe
from vitprune.recipe_parts.reading import read_text
from vitprune.support import files
from vitprune.support.arrays import load_arrays
from vitprune.support.files import write_atomic as write_atomic
from vitprune.support.hashing import sha256_of
from vitprune.support.locking import locked

ENGINES, REPORTS = "engines/", "reports/"


class Bundle:
    """An opened bundle whose listed files match their hashes.

    foreign_code: whether native code that its engines bring may be loaded although it was not built on this machine.
    """

    def __init__(self, path: Path, manifest: Manifest, recipe: Recipe, foreign_code: bool = False) -> None:
        self.path, self.manifest, self.recipe, self.foreign_code = path, manifest, recipe, foreign_code

    @property
    def model_path(self) -> Path:
        """model.onnx."""
        return self.path / "model.onnx"

    @property
    def model_files(self) -> list[str]:
        """Names of the ONNX files: model.onnx, or those of a pipeline of several models."""
        return self.manifest.model_files

    def samples(self) -> dict[str, NDArray[Any]]:
        """Arrays of samples.npz: images [n,C,H,W], logits, dense_logits [n,classes], kept_i, margin_i, maybe size_i and labels.

        Raises:
            LoadError: VP601 they cannot be read, or do not fit the manifest.
        """
        try:
            arrays = load_arrays(self.path / "samples.npz")
        except (OSError, ValueError) as error:
            raise damaged(self.path, "samples.npz", str(error)) from error
        if why := self._misfit(arrays):
            raise damaged(self.path, "samples.npz", why)
        return arrays

    def _misfit(self, arrays: dict[str, NDArray[Any]]) -> str:
        """What of the stored arrays does not fit the manifest, or ""."""
        wanted = ["images", "logits", *(f"kept_{site['block']}" for site in self.manifest.sites)]
        if absent := [name for name in wanted if name not in arrays]:
            return f"it has no array '{absent[0]}'"
        shape, count = tuple(self.manifest.preprocessing["input_size"]), len(arrays["images"]) if arrays["images"].ndim else 0
        if arrays["images"].dtype != "float32" or arrays["images"].shape[1:] != shape or not count:
            return f"images are {arrays['images'].dtype} {arrays['images'].shape}, the model takes float32 {shape}"
        for name, array in arrays.items():
            if name.startswith(("logits", "dense_logits", "kept_")) and (array.ndim != 2 or len(array) != count):
                return f"'{name}' is {array.shape}, for {count} images"
            if array.dtype.kind not in "biuf":
                return f"'{name}' is {array.dtype}"
            if array.dtype.kind == "f" and not _finite(array, name):
                return f"'{name}' is not finite"
        return ""

    def engine_path(self, target: str) -> Path:
        """Folder of the engine built for a target."""
        return self.path / "engines" / target

    def add_files(self, relative: list[str]) -> None:
        """List (or list anew) files inside the bundle in its manifest."""
        with self.changing():
            self._store(lambda listed: listed | {name: sha256_of(self.path / name) for name in relative})

    def list_engine(self, target: str) -> None:
        """Bring the manifest up to date with engines/<target>/, in one step; for use inside `changing`."""
        prefix = f"{ENGINES}{target}/"
        found = (path for path in self.engine_path(target).rglob("*") if path.is_file())
        new = {path.relative_to(self.path).as_posix(): sha256_of(path) for path in found}
        self._store(lambda listed: {name: digest for name, digest in listed.items() if not name.startswith(prefix)} | new)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the bundle alone: what other processes listed meanwhile is read first, so that nothing of it is lost.

        Raises:
            LoadError: VP601 the manifest is damaged, VP608 another bundle lies there now.
        """
        with locked(self.path / "recipe.yaml"):
            there = read_manifest(self.path)
            if _without_engines(there) != _without_engines(self.manifest):
                raise LoadError(
                    608,
                    f"'{self.path}' is another bundle now",
                    cause="it was replaced while this command worked on it",
                    next_step="run the command again",
                )
            self.manifest = there
            yield

    def _store(self, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        listed = change(dict(self.manifest.files))
        manifest = self.manifest.model_copy(update={"files": dict(sorted(listed.items()))}).sealed()
        write_atomic(self.path / "manifest.json", manifest.text().encode())
        self.manifest = manifest

    def write_report(self, name: str, data: str) -> Path:
        """Write reports/<name>.

        Raises:
            RecipeError: VP107.
        """
        folder = self.path / "reports"
        try:
            folder.mkdir(exist_ok=True)
            write_atomic(folder / name, data.encode())
        except OSError as error:
            raise unwritable(folder / name, error) from error
        return folder / name


def _finite(array: NDArray[Any], name: str) -> bool:
    """Whether an array holds numbers; a margin is infinite where nothing was decided."""
    import numpy as np

    return not np.isnan(array).any() if name.startswith("margin") else bool(np.isfinite(array).all())


def _without_engines(manifest: Manifest) -> dict[str, Any]:
    body = manifest.model_dump(exclude={"sha256", "files"})
    return body | {"files": [(name, digest) for name, digest in manifest.files.items() if not name.startswith(ENGINES)]}


def seal(folder: Path, manifest: Manifest) -> None:
    """List every file of a freshly written folder, with what made it, and write its manifest."""
    (folder / PROVENANCE).write_text(json.dumps(provenance(), indent=2) + "\n", encoding="utf-8")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    listed = {name: sha256_of(folder / name) for name in names if not name.startswith(REPORTS) and name != "manifest.json"}
    (folder / "manifest.json").write_text(manifest.model_copy(update={"files": listed}).sealed().text(), encoding="utf-8")


def open_bundle(path: str | Path, foreign_code: bool = False) -> Bundle:
    """Open a bundle and verify every listed file, engines excepted: these can be built anew, and are verified where they are used.

    Args:
        path: its folder. foreign_code: let its engines load native code that was not built on this machine.

    Raises:
        LoadError: VP600 not a bundle, VP601 a file is missing, is a link or its hash differs, VP602 written by a newer schema.
    """
    root = Path(path)
    manifest = read_manifest(root)
    for name in ("engines", "reports"):
        if (root / name).is_symlink():
            raise damaged(root, name, "it points outside the bundle")
    for name, digest in manifest.files.items():
        if files.linked(root, name):
            raise damaged(root, name, "it points outside the bundle")
        if not name.startswith(ENGINES) and (why := damage(root / name, digest)):
            raise damaged(root, name, why)
    try:
        data = read_text(files.read_text(root / "recipe.yaml"), "recipe.yaml")
        if "extends" in data:
            raise damaged(root, "recipe.yaml", "the recipe of a bundle is resolved and extends none")
        recipe = Recipe.load(data)
    except (OSError, ValueError) as error:
        raise damaged(root, "recipe.yaml", str(error)) from error
    except RecipeError as error:
        raise damaged(root, "recipe.yaml", f"{error.message}: {error.cause}") from error
    return Bundle(root, manifest, recipe, foreign_code)


def damage(file: Path, digest: str) -> str:
    """What is wrong with a listed file, or ""."""
    if not file.is_file():
        return "it is missing"
    return "" if sha256_of(file) == digest else "its sha256 does not match the manifest"


def unlisted(bundle: Path, manifest: Manifest, target: str) -> str:
    """What lies in engines/<target>/ without belonging there: the first link or file that the manifest does not list, or ""."""
    folder = bundle / "engines" / target
    for place, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            file = Path(place) / name
            relative = file.relative_to(bundle).as_posix()
            if file.is_symlink() or (name in names and relative not in manifest.files):
                return relative
    return ""
