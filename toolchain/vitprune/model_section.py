"""The `model:` section of a recipe."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from vitprune.recipe_parts.values import ModelArgs


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ModelSection(Section):
    """Which model: a timm name, weights (a file or folder, or null = timm's), image size and timm arguments.

    mean, std (of pixels in [0,1], one number or one per channel), interpolation, crop_pct: what it was trained on, where that is not
    what timm says. classes: names of its classes in their order, by which images in folders find their class.
    """

    name: str | None = None
    weights: str | None = None
    image_size: int | None = Field(default=None, gt=0)
    args: ModelArgs = Field(default_factory=dict)
    mean: list[float] | None = Field(default=None, min_length=1)
    std: list[float] | None = Field(default=None, min_length=1)
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = None
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    classes: list[str] | None = Field(default=None, min_length=1)

    @field_validator("mean", "std")
    @classmethod
    def _finite(cls, values: list[float] | None, info: ValidationInfo) -> list[float] | None:
        lowest = 0 if info.field_name == "std" else -math.inf
        if values is not None and not all(math.isfinite(value) and value > lowest for value in values):
            raise ValueError("they are finite numbers" + (" above 0" if info.field_name == "std" else ""))
        return values

    @field_validator("classes")
    @classmethod
    def _distinct(cls, names: list[str] | None) -> list[str] | None:
        twice = (
            [name for name in names or () if (names or []).count(name) > 1] if len(set(names or ())) < len(names or ()) else []
        )
        if twice:
            raise ValueError(f"'{twice[0]}' names two classes")
        return names
