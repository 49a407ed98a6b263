"""The `precision:` section of a recipe."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from vitprune.model_section import Section
from vitprune.support.precision import QUANTISED

# What int8 and fp8 may cost, where the recipe does not say otherwise.
QUANTISED_GATES = {"agreement": 0.97, "drop": 0.5}


class PrecisionSection(Section):
    """Numeric type of projections, attention and MLP; decisions are FP32 in every mode.

    keep_fp32: patterns of layers that stay FP32 (`support.precision.layer_names`; fp16 adds those that would overflow).
    softmax: "half" computes it in the type of attention's products, in blocks that neither prune nor merge. residual: "half" rounds the
    sums of the residual stream to that type. io: "half" takes images and gives logits or features in float16. logits_tolerance,
    flip_margin: in another type they take the place of gates.logits_max_abs and gates.flip_margin; null = what follows from the type.
    agreement, drop: gates against fp32 on images given to `validate`: share of the same top-1, and points of accuracy lost; null switches off.

    For int8 and fp8, rest: type of attention's products and of layers named in exclude, which are not quantised. calibration, images: how
    ranges are found, and on how many images. smooth, strength: whether channels are evened out, and the exponent alpha of SmoothQuant.
    auto_exclude: at export, leave out the layers that cost most until the gates of agreement and drop hold on the calibration images.
    ranges, smoothing: what was found, by layer: the largest input, and a letter per input channel (`support.precision.exponents`).
    """

    mode: Literal["fp32", "fp16", "bf16", "int8", "fp8"] = "fp32"
    keep_fp32: list[str] = Field(default_factory=list)
    softmax: Literal["fp32", "half"] = "fp32"
    residual: Literal["fp32", "half"] = "fp32"
    io: Literal["fp32", "half"] = "fp32"
    rest: Literal["fp32", "fp16", "bf16"] = "fp16"
    exclude: list[str] = Field(default_factory=list)
    auto_exclude: bool = False
    calibration: Literal["max", "entropy", "percentile"] = "max"
    percentile: float = Field(default=99.99, gt=50, le=100)
    images: int = Field(default=128, gt=0)
    smooth: bool = True
    strength: float = Field(default=0.5, ge=0, le=1)
    ranges: dict[str, float] = Field(default_factory=dict)
    smoothing: dict[str, str] = Field(default_factory=dict)
    logits_tolerance: float | None = Field(default=None, gt=0)
    flip_margin: float | None = Field(default=None, ge=0)
    agreement: float | None = Field(default=0.995, ge=0, le=1)
    drop: float | None = Field(default=0.1, ge=0, le=100)

    @model_validator(mode="before")
    @classmethod
    def _gates_of_the_type(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("mode") in QUANTISED:
            return {**QUANTISED_GATES, **data}
        return data

    @field_validator("ranges")
    @classmethod
    def _ranges(cls, values: dict[str, float]) -> dict[str, float]:
        for layer, value in values.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"the range of '{layer}' is {value}; it is the largest number that goes in, above 0")
        return values

    @field_validator("smoothing")
    @classmethod
    def _letters(cls, values: dict[str, str]) -> dict[str, str]:
        for layer, text in values.items():
            if not text or not (text.isascii() and text.isalpha() and text.islower()):
                raise ValueError(f"the factors of '{layer}' are lower-case letters, one per channel")
        return values

    @property
    def quantised(self) -> bool:
        """Whether layers take int8 or fp8."""
        return self.mode in QUANTISED

    @property
    def floats(self) -> str:
        """The type of what is not quantised."""
        return self.rest if self.quantised else self.mode

    def brief(self) -> dict[str, Any]:
        """As plain data, without what came later than bundles and checkpoints that know a recipe by its digest, where it is the default."""
        plain = self.model_dump(mode="json")
        usual = PrecisionSection(mode=self.mode)
        always = ("mode", "keep_fp32")
        return {key: value for key, value in plain.items() if key in always or value != getattr(usual, key)}
