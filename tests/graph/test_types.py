"""Passes are typed: tensors have a type, keys belong to their method, and the list of passes is what runs."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx_graphsurgeon as gs
import pytest

import vitprune
from vitprune import methods
from vitprune.graph.families.vit import FAMILY
from vitprune.graph.passes.base import GraphPass, run_all
from vitprune.graph.surgery import passes
from vitprune.methods.ats.keys import Params as AtsParams
from vitprune.methods.base import keys_of
from vitprune.methods.topk.keys import Params as TopkParams

ROOT = Path(vitprune.__file__).parent
PASSES = [
    ROOT / "graph/canonical.py",
    ROOT / "graph/emit.py",
    ROOT / "graph/lowering/onnxruntime.py",
    *sorted((ROOT / "graph/passes").glob("*.py")),
    *sorted((ROOT / "methods").glob("*/*surgery.py")),
    *(ROOT / f"methods/_dropping/{name}.py" for name in ("sampling", "selection")),
    ROOT / "methods/_merging/matching.py",
    *(ROOT / f"methods/dvt/{name}.py" for name in ("graphs", "single")),
]
PARAMETRISED = {"dict[str, Any]", "Site[Any]", "list[Site[Any]]"}  # attributes, notes, sites of any method: no tensors


def untyped(source: str) -> list[str]:
    """Annotations that hold an Any which could be a tensor, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        annotations = []
        if isinstance(node, ast.FunctionDef):
            plain = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            annotations = [node.returns, *(argument.annotation for argument in plain)]  # **attrs: attributes of a node
        elif isinstance(node, ast.AnnAssign):
            annotations = [node.annotation]
        for annotation in filter(None, annotations):
            text = ast.unparse(annotation)
            for allowed in PARAMETRISED:
                text = text.replace(allowed, "")
            if "Any" in text:
                found.append(f"{annotation.lineno}: {ast.unparse(annotation)}")
    return found


@pytest.mark.parametrize("path", PASSES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_tensor_is_any(path):
    assert untyped(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["def f(x: Any): ...", "def f() -> tuple[Any, Any]: ...", "kept: list[Any] = []", "def f(g: Callable[[Any], int]): ..."],
)
def test_any_is_found(source):
    assert untyped(source)
    assert not untyped(source.replace("Any", "Tensor"))


def test_keys_are_those_of_the_method():
    keys = AtsParams(method="ats", stages=[3], num_samples=8)
    assert keys_of(keys, AtsParams) is keys
    with pytest.raises(
        TypeError, match="vitprune.methods.topk.keys.Params expected, these are of vitprune.methods.ats.keys.Params"
    ):
        keys_of(keys, TopkParams)


def test_every_method_is_followed_by_pooling_and_outputs():
    for name in methods.names():
        if name != "dvt":
            assert [step.name for step in passes(methods.get(name), FAMILY)][1:] == [
                "heads",
                "pooling",
                "attention_pooling",
                "outputs",
            ]


def test_the_report_lists_passes_in_the_order_of_their_run():
    ran = []

    class Step(GraphPass):
        def __init__(self, name: str, changes: bool) -> None:
            self.name, self.changes = name, changes

        def apply(self, surgery) -> bool:
            ran.append(self.name)
            return self.changes

    class Work:
        graph = gs.Graph()

    found = run_all([Step("second", True), Step("first", False)], Work())
    assert found == [{"name": "second", "changed": True}, {"name": "first", "changed": False}]
    assert ran == ["second", "first"]
