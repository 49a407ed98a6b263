"""What torch's exporter is given besides the module: no gradients to trace, no search for garbage; both as they were afterwards."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from helpers import ats, tiny
from vitprune.errors import ExportError
from vitprune.exporting import dense as exporting
from vitprune.recipe import Recipe

SMALL = {"depth": 1, "img_size": 16, "embed_dim": 32, "num_heads": 2}
RECIPE = Recipe.load(ats(stages=[0]))


def exported(module: Any) -> bytes:
    written: bytes = exporting._exported(module, (3, 16, 16), RECIPE, ["logits"]).SerializeToString(deterministic=True)
    return written


def test_gradients_are_asked_for_as_before_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny(**SMALL)
    module.head.bias.requires_grad_(False)
    asking = [parameter.requires_grad for parameter in module.parameters()]
    made, seen = exported(module), []
    assert [parameter.requires_grad for parameter in module.parameters()] == asking
    export = torch.onnx.export

    def watched(module: Any, *args: Any, **options: Any) -> Any:
        seen.append((any(parameter.requires_grad for parameter in module.parameters()), gc.isenabled()))
        return export(module, *args, **options)

    monkeypatch.setattr(torch.onnx, "export", watched)
    assert exported(module) == made
    monkeypatch.setattr(exporting, "frozen", lambda module: nullcontext())
    assert exported(module) == made
    assert seen == [(False, False), (True, False)]


def test_both_are_as_before_where_the_export_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise ValueError("no")

    module = tiny(**SMALL)
    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ExportError, match="VP304"):
        exported(module)
    assert gc.isenabled()
    assert all(parameter.requires_grad for parameter in module.parameters())
