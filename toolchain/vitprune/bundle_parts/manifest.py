"""manifest.json of a bundle: its form, its seal, and what must hold of it before anything in the bundle is looked at."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from vitprune.errors import LoadError
from vitprune.recipe_parts.values import ModelArgs
from vitprune.support import files, json_text
from vitprune.support.about import VERSION
from vitprune.support.limits import limits, require
from vitprune.support.resources import HUB_NAME, SHIPPED

SCHEMA = 1
MANIFEST = "manifest.json"
REQUIRED = ("recipe.yaml", "samples.npz")

Count = Annotated[int, Field(ge=0, le=1 << 40, strict=True)]
Size = Annotated[int, Field(ge=1, le=1 << 20, strict=True)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """A part whose known keys are checked; further ones are left alone."""

    model_config = ConfigDict(extra="allow")


class _Geometry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    depth: Size
    patches: Size
    prefix: Annotated[int, Field(ge=0, le=1 << 20, strict=True)]
    width: Size
    heads: Size
    mlp_hidden: Annotated[int, Field(ge=1, le=1 << 24, strict=True)]
    embed_macs: Annotated[int, Field(ge=0, le=1 << 50, strict=True)] = 0
    classes: Count = 0
    has_cls: bool = True
    keys: Count = 0


class _Source(_Part):
    """Where the model came from; a file is named, never pointed at."""

    kind: Name
    name: Name | None = None
    args: ModelArgs = Field(default_factory=dict)
    weights: Name | None = None
    file: Name | None = None
    sha256: str = ""
    seed: Count = 0
    folder: Name | None = None
    image_size: Size | None = None

    @model_validator(mode="after")
    def _complete(self) -> _Source:
        if self.file is not None and not files.plain_name(self.file) and not files.inside(self.file.removeprefix(SHIPPED)):
            raise ValueError(f"the weights file '{self.file}' is not a plain name")
        if self.kind in ("timm", "cascade") and (self.name is None or self.weights not in ("pretrained", "random", "file")):
            raise ValueError("a model that can be made again has a name, and weights: pretrained, random or file")
        if self.kind == "hugging_face":
            if self.name is None or self.weights not in ("folder", "random", "file") or self.image_size is None:
                raise ValueError("a model of a folder has a name, an image size, and weights: folder, random or file")
            if self.folder is None or not (
                HUB_NAME.fullmatch(self.folder) if self.folder.startswith("hf:") else files.inside(self.folder)
            ):
                raise ValueError(f"the model's folder '{self.folder}' is no name")
        return self


class _Model(_Part):
    source: _Source
    geometry: _Geometry


class _Preprocessing(_Part):
    input_size: Annotated[list[Size], Field(min_length=3, max_length=3)]
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: Name | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> _Preprocessing:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != self.input_size[0] or not all(map(math.isfinite, values))):
                raise ValueError(f"'{name}' has one finite number per channel")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("'std' is above 0")
        return self


class _Tensor(_Part):
    name: Name
    shape: list[Annotated[int, Field(ge=0, strict=True)] | str | None] = Field(default_factory=list)


class _Io(_Part):
    inputs: Annotated[list[_Tensor], Field(min_length=1)]
    outputs: Annotated[list[_Tensor], Field(min_length=1)]
    models: dict[str, _Io] | None = None

    @field_validator("models")
    @classmethod
    def _named(cls, models: dict[str, _Io] | None) -> dict[str, _Io] | None:
        if models is not None and not (models and all(files.plain_name(name) for name in models)):
            raise ValueError("model files have plain names")
        return models


class _Site(_Part):
    block: Annotated[int, Field(ge=0, le=1 << 20, strict=True)]
    limit: Count
    bypass: Annotated[bool, Field(strict=True)]


class _Content(_Part):
    """What the untyped parts of a manifest must hold."""

    model: _Model
    preprocessing: _Preprocessing
    io: _Io
    sites: list[_Site]
    files: dict[str, Digest]

    @field_validator("sites")
    @classmethod
    def _distinct(cls, sites: list[_Site]) -> list[_Site]:
        blocks = [site.block for site in sites]
        if sorted(set(blocks)) != blocks:
            raise ValueError("the blocks of the sites ascend")
        return sites


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

    @property
    def model_files(self) -> list[str]:
        """Names of the ONNX files: model.onnx, or those of a pipeline of several models."""
        return list(self.io.get("models") or ["model.onnx"])

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

    def complaint(self) -> str:
        """What of the contents cannot be, or ""."""
        try:
            _Content.model_validate(self.model_dump(include=set(_Content.model_fields)))
            require("one input of the model", math.prod(self.preprocessing["input_size"]), limits.values, "values")
        except ValidationError as error:
            first = error.errors()[0]
            return f"'{'.'.join(map(str, first['loc']))}': {first['msg'].removeprefix('Value error, ')}"
        except OSError as error:
            return str(error)
        if wrong := [name for name in self.files if not files.inside(name)]:
            return f"'{wrong[0]}' does not name a file inside the bundle"
        absent = [name for name in (*REQUIRED, *self.model_files) if name not in self.files]
        return f"it does not list {absent[0]}" if absent else ""


def read_manifest(root: Path) -> Manifest:
    """The manifest of a bundle, checked for itself; the files it lists are not looked at.

    Raises:
        LoadError: VP600 there is none, VP601 it is damaged or cannot be, VP602 written by a newer schema.
    """
    file = root / MANIFEST
    if not file.is_file():
        raise LoadError(
            600,
            f"'{root}' is not a bundle",
            cause="it has no manifest.json",
            next_step="vitprune export MODEL -r RECIPE -o BUNDLE",
        )
    try:
        text = files.read_text(file)
        data = json_text.parse(text)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA:
            raise LoadError(
                602,
                f"'{root}' has schema {version}",
                cause=f"this vitprune reads schema {SCHEMA}",
                next_step="pip install -U vitprune",
            )
        manifest = Manifest.model_validate(data)
        sealed = manifest.seal() == manifest.sha256 and manifest.text() == text
    except (OSError, ValueError) as error:
        raise damaged(root, MANIFEST, "it is not a valid manifest") from error
    if not sealed:
        raise damaged(root, MANIFEST, "its own sha256 does not match")
    if why := manifest.complaint():
        raise damaged(root, MANIFEST, why)
    return manifest


def damaged(root: Path, name: str, cause: str) -> LoadError:
    """The error of a bundle that is not as it was written."""
    return LoadError(
        601, f"bundle '{root}' is damaged: {name}", cause=cause, next_step="export the bundle again, or copy it again"
    )
