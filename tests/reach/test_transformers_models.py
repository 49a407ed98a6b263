"""Vision models of transformers through `rewrite`: a few cases run, what is stored fits, and what is no pass is told from one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from vitprune.errors import LoadError
from vitprune.reports import hugging_face as report

pytest.importorskip("transformers", reason="extra 'test' brings transformers")
sys.path.insert(0, str(Path(__file__).parent))

import hugging_face  # noqa: E402
from hugging_face_models import ZOO  # noqa: E402

GOOD = {"parity": 1e-6, "noop": 1e-6, "batch": 0.0, "pruned": 0.3, "kept": True, "score": "", "judge": 1e-6}


@pytest.mark.parametrize(
    ("name", "exporter", "attention", "method"),
    [
        ("CLIP projection", "dynamo 23", "sdpa", "topk"),
        ("DINOv3", "torchscript 17", "eager", "topk"),
        ("SigLIP2", "torchscript 17", "eager", "topk"),  # patches are embedded by a product with rows of pixels
        ("OWL-ViT features", "torchscript 17", "eager", "tome"),  # the output is a block's own, of a stated shape
        ("AIMv2 features", "torchscript 17", "eager", "tome"),  # casts that change nothing between norm and residual sum
        ("ViT-MAE", "torchscript 17", "eager", "topk"),  # its graph sorts, which is no ranking of ours
    ],
)
def test_a_case(name: str, exporter: str, attention: str, method: str) -> None:
    found = hugging_face.attempt(name, exporter, attention, method)
    assert report.failure(found) == "", found
    assert "absent" not in found


@pytest.mark.parametrize(
    ("method", "planted", "said"),
    [("topk", {"score": "mean_attention"}, "kept lists differ"), ("tome", {"prop_attn": False}, "judge")],
)
def test_the_judge_notices_what_graph_and_reference_share(
    method: str, planted: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: both implementations do alike what was not asked for, so that parity holds."""
    monkeypatch.setitem(hugging_face.PRUNE, method, hugging_face.PRUNE[method] | planted)
    found = hugging_face.attempt("DINOv3", "torchscript 17", "eager", method)
    assert found["parity"] <= 1e-4
    assert said in report.failure(found)


def test_stored_models_are_those_of_the_matrix() -> None:
    stored = report.read()
    assert set(stored["models"]) == set(ZOO)
    assert stored["exporters"] == list(hugging_face.EXPORTERS)


def test_a_head_that_is_not_understood_is_refused_by_its_node() -> None:
    found = hugging_face.attempt("AIMv2", "torchscript 17", "eager", "tome")
    assert found["refused"].startswith("VP327")
    assert "/net/head/" in found["refused"]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"parity": 2e-4}, "parity"), ({"noop": 2e-5}, "noop"), ({"batch": float("nan")}, "batch"), ({"pruned": 0.0}, "nothing pruned"), ({"kept": False}, "kept"), ({"judge": 2e-4}, "judge"), ({"refused": "VP310"}, "VP310")],
)  # fmt: skip
def test_no_failure_counts_as_a_pass(change: dict[str, Any], said: str) -> None:
    assert report.failure(GOOD) == ""
    assert said in report.failure({**GOOD, **change})


def test_states_and_reasons() -> None:
    absent, bad = {"absent": "no such attention"}, {"refused": "VP1: no"}
    assert [report.state(cases) for cases in ([], [absent], [absent, GOOD], [GOOD, bad], [bad])] == [
        "not run", "–", "1 of 1", "1 of 2", "0 of 1",
    ]  # fmt: skip
    rows = {"dynamo 18 eager tome": GOOD, "dynamo 18 sdpa tome": bad, "dynamo 18 sdpa topk": bad}
    page = report.markdown({"transformers": "5", "torch": "2", "exporters": ["dynamo 18", "dynamo 20"], "models": {"M": rows}})
    assert "1 of 3 cases pass" in page
    assert "| M | 1 of 3 | not run | 1.0e-06 | 1.0e-06 |" in page
    assert "| M | dynamo 18 sdpa tome and 1 more | VP1: no |" in page


def test_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="VP604"):
        report.read(tmp_path / "hugging_face.json")
