"""The `output:` section of a recipe: logits, or dense features."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from vitprune.model_section import Section


class OutputSection(Section):
    """What the graph gives: logits, or features with every patch in its place.

    kind: "logits", or "features" (of a given graph: all outputs that it has, whatever stands behind the blocks). The other keys are of
    features. layout: "tokens" [B,P,C] or "map" [B,C,h,w]. blocks: behind how many blocks, [3, 6, 9, 12] as detection, segmentation and
    depth heads read them; null = behind the last. norm: the model's final norm on each of them. prefix: the prefix tokens (CLS,
    registers) as outputs of their own, [B,prefix,C]. fill: what stands where a token was dropped: null = methods that drop tokens are
    refused, "last" = the row with which the patch entered the block in which it left.
    """

    kind: Literal["logits", "features"] = "logits"
    layout: Literal["tokens", "map"] = "tokens"
    blocks: list[int] | None = Field(default=None, min_length=1)
    norm: bool = True
    prefix: bool = False
    fill: Literal["last"] | None = None

    @field_validator("blocks")
    @classmethod
    def _ascending(cls, blocks: list[int] | None) -> list[int] | None:
        if blocks is not None and (blocks[0] < 1 or blocks != sorted(set(blocks))):
            raise ValueError("blocks ascend without repetition and count from 1: 12 is behind the twelfth block")
        return blocks

    @model_validator(mode="after")
    def _of_features(self) -> Self:
        stated = [name for name in type(self).model_fields if name != "kind" and getattr(self, name) != DEFAULTS[name]]
        if self.kind == "logits" and stated:
            raise ValueError(f"'{stated[0]}' is a key of features: say kind: features")
        return self

    @property
    def features(self) -> bool:
        """Whether features are asked for."""
        return self.kind == "features"

    def shape_keys(self) -> list[str]:
        """Keys that are stated and say how a model's features are laid out, which a given graph does itself."""
        return [name for name in ("layout", "blocks", "norm", "prefix") if getattr(self, name) != DEFAULTS[name]]


DEFAULTS = {name: field.default for name, field in OutputSection.model_fields.items()}
