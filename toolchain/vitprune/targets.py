"""Targets: what an engine is built for, one YAML file each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitprune.errors import TargetError
from vitprune.resources import shipped_targets
from vitprune.suggestions import did_you_mean


class Target(BaseModel):
    """One target.

    backend: which backend builds. engine_file: name of the engine inside the bundle. builds_on: "any" host or only the "device".
    keep_kept_outputs: whether the engine also returns the kept patch numbers. max_opset, max_ir: what its parser takes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    backend: str
    engine_file: str = "model.engine"
    builds_on: str = "any"
    keep_kept_outputs: bool = False
    max_opset: int = 20
    max_ir: int = 10
    workspace_mib: int | None = Field(default=None, gt=0)


def load(name: str) -> Target:
    """A shipped target by name, or a YAML file.

    Raises:
        TargetError: VP202 unknown, VP203 the file is wrong.
    """
    shipped = shipped_targets()
    path = shipped.get(name, Path(name) if name.endswith((".yaml", ".yml")) else None)
    if path is None or not path.is_file():
        raise TargetError(202, f"unknown target '{name}'", cause=did_you_mean(name, shipped), next_step="vitprune targets")
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Target.model_validate(data)
    except (yaml.YAMLError, ValidationError) as error:
        raise TargetError(203, f"target file '{path}' is wrong", cause=" ".join(str(error).split())[:200]) from error
