"""Targets: what an engine is built for, one YAML file each."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vitprune.errors import TargetError
from vitprune.support import files
from vitprune.support.device_speed import LaunchTime, Speed
from vitprune.support.resources import shipped_targets
from vitprune.support.suggestions import did_you_mean
from vitprune.support.versions import Version
from vitprune.support.yaml_text import parse

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]


# Other files of an engine's folder.
TAKEN = ("engine.json", "timing.cache", "graph.onnx", "package-report.json")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Module(_Section):
    """A board or card of a target: its memory, its compute capability where the target's boards differ, and its data sheet's peaks."""

    title: str
    memory_gib: float = Field(gt=0)
    architecture: str | None = None
    speed: Speed | None = None


class Release(_Section):
    """A system release and the runtime it brings: JetPack and TensorRT on a Jetson; elsewhere a TensorRT version alone.

    modules: the modules that NVIDIA documents it for; empty means all.
    """

    tensorrt: str
    jetpack: str = ""
    cuda: str = ""
    python: str = ""
    modules: list[str] = Field(default_factory=list)

    @field_validator("tensorrt", "jetpack")
    @classmethod
    def _is_version(cls, text: str) -> str:
        if text and Version.find(text) is None:
            raise ValueError(f"'{text}' is not a version")
        return text


# First compute capability that computes with a number type.
SINCE = {"tf32": 80, "bf16": 80, "fp8": 89}


def lacking(mode: str, architectures: Sequence[str]) -> list[str]:
    """Those of some compute capabilities ("87") that do not compute with a number type."""
    return [found for found in architectures if int(found) < SINCE.get(mode, 0)]


class Power(_Section):
    """Commands that show and fix the power state; a latency without them says little."""

    query: list[str] = Field(default_factory=list)
    set: list[str] = Field(default_factory=list)
    lock: list[str] = Field(default_factory=list)
    watch: list[str] = Field(default_factory=list)


class Target(_Section):
    """One target.

    backend: which backend builds. engine_file: name of the engine inside the bundle. builds_on: "any" host or only the "device".
    machine: processor of the device as `uname -m` says it, "" for any. keep_kept_outputs: whether the engine also returns the kept
    patch numbers. max_opset, max_ir: what its parser takes. workspace_mib: limit of the builder's scratch memory;
    workspace_fraction: the same as a part of a module's memory. architectures: compute capabilities as nvcc writes them ("87"), or
    "auto": those of the GPUs found. precisions: what the hardware computes with. recommended_precision: what a recipe for it
    should say (its graph carries the types, so nothing here changes a bundle). modules, releases: by name, oldest release first.
    runtime_min, runtime_below: range of the runtime's versions. runtime_source: where the runtime comes from. launch: for the launch model.
    """

    name: str
    summary: str
    backend: str
    engine_file: str = "model.engine"
    builds_on: Literal["any", "device"] = "any"
    machine: str = ""
    keep_kept_outputs: bool = False
    max_opset: int = 20
    max_ir: int = 10
    workspace_mib: int | None = Field(default=None, gt=0)
    workspace_fraction: float | None = Field(default=None, gt=0, le=1)
    architectures: list[str] | Literal["auto"] = Field(default_factory=list)
    precisions: tuple[Precision, ...] = ("fp32",)
    recommended_precision: Precision = "fp32"
    modules: dict[str, Module] = Field(default_factory=dict)
    releases: list[Release] = Field(default_factory=list)
    runtime_min: str = ""
    runtime_below: str = ""
    runtime_source: str = ""
    power: Power = Field(default_factory=Power)
    launch: LaunchTime | None = None
    notes: list[str] = Field(default_factory=list)

    @field_validator("name", "engine_file")
    @classmethod
    def _is_plain(cls, text: str) -> str:
        if not files.plain_name(text) or len(text) > 100:
            raise ValueError(f"'{text}' is not a plain name: it becomes one of a folder or file in the bundle")
        return text

    @field_validator("engine_file")
    @classmethod
    def _is_free(cls, text: str) -> str:
        if text in TAKEN or text.endswith((".tar", ".log", ".so")):
            raise ValueError(f"'{text}' is the name of another file beside the engine")
        return text

    @property
    def compute_capability(self) -> str:
        """The one compute capability of the target's devices ("87"), "" when they differ or are not known beforehand."""
        return self.architectures[0] if self.architectures != "auto" and len(self.architectures) == 1 else ""

    def workspace_for(self, module: Module | None) -> int | None:
        """Limit of the builder's scratch memory in MiB, None for the runtime's own default."""
        if self.workspace_mib is not None or self.workspace_fraction is None or module is None:
            return self.workspace_mib
        return int(module.memory_gib * 1024 * self.workspace_fraction)


@dataclass(frozen=True)
class Choice:
    """A target with the release and module that were asked for; None where nothing was asked or the target has none.

    release_stated: whether the release was asked for, or is the one that is assumed.
    """

    target: Target
    release: Release | None
    module: Module | None
    module_name: str = ""
    release_stated: bool = False

    @property
    def runtime_version(self) -> Version | None:
        """Version of the release's TensorRT."""
        return Version.parse(self.release.tensorrt) if self.release is not None else None

    @property
    def architectures(self) -> list[str]:
        """Compute capabilities of the chosen module, else of the target; [] when only the device knows."""
        if self.module is not None and self.module.architecture is not None:
            return [self.module.architecture]
        return [] if self.target.architectures == "auto" else self.target.architectures

    def with_workspace(self, mib: int | None) -> Choice:
        """The same with another limit of the builder's scratch memory; unchanged for None."""
        return self if mib is None else replace(self, target=self.target.model_copy(update={"workspace_mib": mib}))

    def narrowed(self, architecture: str = "") -> Target:
        """The target with the compute capability and scratch memory of the device that is meant; unchanged when nothing was asked.

        Args:
            architecture: compute capability that the user states, as nvcc writes it ("87"), "" for none.

        Raises:
            TargetError: VP225 when it is not one of the target's or the module's.
        """
        allowed = self.architectures
        if architecture and allowed and architecture not in allowed:
            whose = f"module '{self.module_name}'" if self.module is not None else f"'{self.target.name}'"
            raise TargetError(
                225,
                f"SM {architecture} is not of {whose}",
                cause=f"its engines are for SM {', '.join(allowed)}",
                next_step=f"--sm {allowed[0]}, or another --target (vitprune targets)",
            )
        kept = [architecture] if architecture else allowed
        return self.target.model_copy(
            update={
                "architectures": kept or self.target.architectures,
                "workspace_mib": self.target.workspace_for(self.module),
            }
        )

    def stated(self, architecture: str = "") -> dict[str, str]:
        """What was said about the device, {} when nothing was: module, jetpack, tensorrt, sm."""
        release = self.release if self.release_stated else None
        stated = {
            "module": self.module_name, "jetpack": release.jetpack if release else "", "tensorrt": release.tensorrt if release else "",
            "sm": architecture,
        }  # fmt: skip
        return {name: value for name, value in stated.items() if value}


def capability(text: str) -> str:
    """A compute capability as nvcc writes it, "87", of "8.7" or "87"; "" of "".

    Raises:
        TargetError: VP224 when it is none.
    """
    plain = text.replace(".", "")
    if text and re.fullmatch(r"[0-9]{2,4}", plain) is None:
        raise TargetError(224, f"'{text}' is no compute capability", next_step="--sm 8.7")
    return plain


def load(name: str) -> Target:
    """A shipped target by name, or a YAML file.

    Raises:
        TargetError: VP202 unknown, VP203 the file is wrong.
    """
    shipped = shipped_targets()
    path = shipped.get(name, Path(name) if name.endswith((".yaml", ".yml")) else None)
    if path is None or not os.path.exists(path):
        raise TargetError(202, f"unknown target '{name}'", cause=did_you_mean(name, shipped), next_step="vitprune targets")
    try:
        data: Any = parse(files.read_text(path))
        return Target.model_validate(data)
    except ValidationError as error:
        raise TargetError(203, f"target file '{path}' is wrong", cause=_complaint(error), next_step="correct the file") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        cause = " ".join(str(error).split())[:200]
        raise TargetError(203, f"target file '{path}' is wrong", cause=cause, next_step="correct the file") from error


def _complaint(error: ValidationError) -> str:
    """Pydantic's first complaint in one sentence; an unknown key gets a did-you-mean."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where}': {did_you_mean(where.rpartition('.')[2], Target.model_fields)}"
    return f"'{where}': {first['msg']}"


def choose(target: Target, *, jetpack: str | None = None, module: str | None = None, tensorrt: str | None = None) -> Choice:
    """Pick a release and a module of a target.

    Args:
        target: the target.
        jetpack: JetPack version; patch releases count as the newest listed one that is not newer (6.2.1 as 6.2).
        module: name of a board or card.
        tensorrt: TensorRT version instead of a release's.

    Returns:
        The choice; without `jetpack` and `tensorrt` the oldest release, since what that takes, the newer ones take too.

    Raises:
        TargetError: VP220 unknown module, VP221 JetPack that the target does not run, VP222 an option the target has no use for,
            VP223 not a version or beyond the target's range.
    """
    picked = target.modules.get(module) if module else None
    if module and picked is None:
        if not target.modules:
            raise _useless(target, f"--module {module}", "it has no modules")
        raise TargetError(
            220,
            f"'{target.name}' has no module '{module}'",
            cause=did_you_mean(module, target.modules),
            next_step="vitprune targets",
        )
    if tensorrt is not None:
        release: Release | None = Release(tensorrt=_checked(target, tensorrt))
    elif jetpack is not None:
        release = _by_jetpack(target, jetpack)
    else:
        release = target.releases[0] if target.releases else None
    return Choice(target, release, picked, module or "", tensorrt is not None or jetpack is not None)


def _by_jetpack(target: Target, jetpack: str) -> Release:
    listed = [release for release in target.releases if release.jetpack]
    if not listed:
        raise _useless(target, f"--jetpack {jetpack}", "it does not run JetPack")
    asked = Version.find(jetpack)
    fitting = [
        r
        for r in listed
        if asked is not None and asked.starts_with_minor_of(Version.parse(r.jetpack)) and asked >= Version.parse(r.jetpack)
    ]
    if not fitting:
        raise TargetError(
            221,
            f"'{target.name}' is not supported with JetPack {jetpack}",
            cause=f"supported: {', '.join(f'{r.jetpack} (TensorRT {r.tensorrt})' for r in listed)}",
            next_step=f"--jetpack {listed[0].jetpack}, or update the device",
        )
    return max(fitting, key=lambda release: Version.parse(release.jetpack))


def _checked(target: Target, text: str) -> str:
    if not target.runtime_min or target.backend != "tensorrt":
        raise _useless(target, f"--tensorrt {text}", "it does not run TensorRT")
    version = Version.find(text)
    if version is None or not Version.parse(target.runtime_min) <= version < Version.parse(target.runtime_below):
        raise TargetError(
            223,
            f"TensorRT {text} is not supported for '{target.name}'",
            cause=f"supported: from {target.runtime_min}, below {target.runtime_below}",
            next_step=f"--tensorrt {target.runtime_min}",
        )
    return text


def _useless(target: Target, option: str, cause: str) -> TargetError:
    return TargetError(
        222, f"{option} means nothing for '{target.name}'", cause=cause, next_step="leave it out, or choose another --target"
    )
