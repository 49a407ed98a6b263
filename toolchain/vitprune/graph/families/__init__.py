"""Families of models that graphs belong to, one file each: a module in here with a `FAMILY` is a family, there is no list to edit."""

from __future__ import annotations

from functools import cache

import onnx

from vitprune.graph.families.base import Family as Family
from vitprune.graph.families.vit import FAMILY
from vitprune.support import registry


@cache
def _special() -> list[Family]:
    """All families but the plain ViT, by name of their module."""
    found = [registry.module(f"{__name__}.{name}") for name in registry.inside(__name__) if name != "base"]
    return [module.FAMILY for module in found if module.FAMILY is not FAMILY]


def of(model: onnx.ModelProto) -> Family:
    """The family that says a dense graph is one of its own; the plain ViT where none does."""
    return next((family for family in _special() if family.matches(model)), FAMILY)
