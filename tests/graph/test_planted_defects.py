"""Defects planted into the surgery: each is caught by the checks of `rewrite` and of `export` before anything is written.

A defect changes the operands of one labelled operator that the surgery writes. docs/checks.md shows the table below; a test keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_vits import SIDE, SmallViT

import vitprune
from helpers import images, legacy_onnx
from vitprune.errors import ExportError
from vitprune.graph.emit import FLOAT, INT64, Emitter

PAGE = Path(__file__).parents[2] / "docs" / "checks.md"
PRUNE: dict[str, dict[str, Any]] = {
    "ats": {"stages": [1, 2], "num_samples": [36, 28]},
    "topk": {"stages": [1, 2], "keep": [20, 12]},
    "evit": {"stages": [1, 2], "keep": [20, 12]},
    "tome": {"stages": None, "r": 7},
    "tome_threshold": {"stages": None, "tau": 0.3, "r_max": 7},
}


@dataclass(frozen=True)
class Defect:
    """what: for people. method, mean: the recipe's method and whether the head averages. label: of the operator. change: emitter and
    inputs -> inputs. attrs: attributes that change. caught: what must notice it.
    """

    what: str
    method: str
    label: str
    change: Callable[[Emitter, list[Any]], list[Any]] | None = None
    attrs: tuple[tuple[str, Any], ...] = ()
    mean: bool = False
    caught: str = "reference, pruning on"


def shifted(emit: Emitter, inputs: list[Any]) -> list[Any]:
    rows = emit.op("Sub", [inputs[1], emit.constant(1)], "planted/step", dtype=INT64)
    return [inputs[0], emit.op("Abs", [rows], "planted/rows", dtype=INT64)]


def second(value: Any, dtype: Any = FLOAT) -> Callable[[Emitter, list[Any]], list[Any]]:
    return lambda emit, inputs: [inputs[0], emit.constant(value, dtype), *inputs[2:]]


def rolled(emit: Emitter, inputs: list[Any]) -> list[Any]:
    return [inputs[0], emit.constant(np.roll(inputs[1].values, 1, axis=1), FLOAT)]


def ones(emit: Emitter, inputs: list[Any]) -> list[Any]:
    return [emit.op("Div", [inputs[0], inputs[0]], "planted/ones")]


def reversed_numbers(emit: Emitter, inputs: list[Any]) -> list[Any]:
    return [emit.constant(np.asarray(inputs[0].values)[:, ::-1]), inputs[1]]


def kept_fused_too(emit: Emitter, inputs: list[Any]) -> list[Any]:
    return [inputs[0], inputs[1], emit.op("Add", [inputs[2], emit.constant(0.1, FLOAT)], "planted/weights")]


DEFECTS = [
    Defect("the residual takes other rows than the queries", "ats", "x/kept", shifted),
    Defect("queries of other rows", "topk", "h/kept", shifted),
    Defect("pad slots are visible as keys", "ats", "bias/patches", second(0.0)),
    Defect("patches are off by one prefix token", "topk", "rows/patches", second(0, INT64)),
    Defect("the score is read from a patch's row instead of CLS", "topk", "cls", second(3, INT64)),
    Defect("the score takes queries of the wrong head", "ats", "cls_query/heads", rolled),
    Defect("the score takes values of the wrong head", "ats", "value/head_squares", rolled),
    Defect("the lowest scores are kept", "topk", "top", attrs=(("largest", 0),)),
    Defect("kept patches are numbered backwards", "ats", "all_patches", reversed_numbers),
    Defect("the mean counts pad slots", "tome_threshold", "masked", second(1.0), mean=True),
    Defect("merged rows are not divided by their size", "tome", "share/moved", second(1.5)),
    Defect("keys of merged rows carry no size", "tome", "bias/log_size", ones),
    Defect("the fused token holds the kept ones too", "evit", "dropped/weights", kept_fused_too),
]


def plant(monkeypatch: pytest.MonkeyPatch, defect: Defect) -> list[str]:
    """Change the operator wherever it is written; returns the list of places, filled while writing."""
    plain, places = Emitter.ops, []

    def ops(self: Emitter, kind: str, inputs: Any, label: str, outputs: Any, *, domain: Any = None, **attrs: Any) -> Any:
        if label == defect.label and not label.startswith("planted"):
            places.append(f"{self.prefix}/{label}")
            inputs = list(inputs) if defect.change is None else defect.change(self, list(inputs))
            attrs |= dict(defect.attrs)
        return plain(self, kind, inputs, label, outputs, domain=domain, **attrs)

    monkeypatch.setattr(Emitter, "ops", ops)
    return places


@pytest.fixture(scope="module")
def dense_files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("dense")
    heads: dict[bool, Any] = {False: lambda t: t[:, 0], True: lambda t: t.mean(1)}
    x = torch.from_numpy(images(2, (3, SIDE, SIDE)))
    for mean, head in heads.items():
        legacy_onnx(SmallViT(head), x, folder / f"{mean}.onnx", 17)
    return {mean: folder / f"{mean}.onnx" for mean in heads}


def recipe(defect: Defect) -> vitprune.Recipe:
    return vitprune.Recipe.load({"prune": {"method": defect.method, **PRUNE[defect.method]}, "validate": {"samples": 12}})


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.what)
def test_rewrite_catches(defect, dense_files, tmp_path, monkeypatch):
    places = plant(monkeypatch, defect)
    with pytest.raises(ExportError) as error:
        vitprune.rewrite(dense_files[defect.mean], recipe(defect), tmp_path / "bundle")
    assert places, "the defect must have been planted"
    assert error.value.code == "VP330", str(error.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("defect", [d for d in DEFECTS if not d.mean], ids=lambda defect: defect.what)
def test_export_catches(defect, tiny_model, tiny_dense, tmp_path, monkeypatch):
    """The same by `export`; torch's export of the dense graph is not what is tested, so it is done once."""
    monkeypatch.setattr("vitprune.exporting.export.dense_onnx", lambda *args: tiny_dense)
    places = plant(monkeypatch, defect)
    with pytest.raises(ExportError) as error:
        vitprune.export(tiny_model, recipe(defect), tmp_path / "bundle")
    assert places
    assert error.value.code == "VP330", str(error.value)


@pytest.mark.parametrize("method", PRUNE)
def test_nothing_planted_nothing_caught(method, dense_files, tmp_path):
    vitprune.rewrite(dense_files[False], recipe(Defect("", method, "")), tmp_path / "bundle")


def table() -> str:
    """The rows of docs/checks.md."""
    rows = ["| defect | planted into | caught by |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| {d.what} | {d.method} | {d.caught} (VP330) |" for d in DEFECTS)])


def test_the_page_shows_this_table():
    assert table() in PAGE.read_text(encoding="utf-8")
