"""The demo's own decisions; the whole of it is `make demo`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitprune import demo, plugins
from vitprune.errors import VitpruneError


def bundle(logits: list[list[float]], kept: list[list[int]]) -> Any:
    return SimpleNamespace(samples=lambda: {"logits": np.array(logits, np.float32), "kept_1": np.array(kept)})


def test_agreement_counts_differing_decisions_apart() -> None:
    one = bundle([[0, 1], [5, 5]], [[0, 2, -1], [1, 2, -1]])
    assert demo._agreement(one, bundle([[0, 1.5], [5, 5]], [[0, 2], [1, 2]])).endswith("within 5.0e-01")
    text = demo._agreement(one, bundle([[0, 1.5], [9, 5]], [[0, 2], [1, 3]]))
    assert "within 5.0e-01" in text
    assert "on 1 of 2 images" in text


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(VitpruneError, match="VP106"):
        demo.run("ats", tmp_path, lambda title: nullcontext())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_unknown_method(tmp_path) -> None:
    with pytest.raises(VitpruneError, match="VP100"):
        demo.run("atss", tmp_path / "demo", lambda title: nullcontext())


def test_native_operators_are_built_where_that_can_be_done(monkeypatch) -> None:
    """Present: nothing is built. Else they are; without headers or tools the demo goes on and says so."""
    with_headers, without = SimpleNamespace(onnxruntime_api="20"), SimpleNamespace(onnxruntime_api="")
    asked: list[dict[str, Any]] = []

    def no_tools(**given: Any) -> Any:
        raise plugins.PluginError("VP601", "There is no cmake on PATH.", "Install cmake and a C++17 compiler.")

    def answers(built: Any, build: Any) -> list[str]:
        monkeypatch.setattr(plugins, "built", lambda: built)
        monkeypatch.setattr(plugins, "build", build)
        return demo._native()

    assert answers(with_headers, no_tools) == []
    assert answers(None, lambda **given: asked.append(given) or with_headers) == []
    assert asked == [{"cuda": False}]
    assert "onnxruntime_c_api.h" in answers(None, lambda **given: without)[0]
    assert "onnxruntime_c_api.h" in answers(without, no_tools)[0]
    assert "There is no cmake" in answers(None, no_tools)[0]


@pytest.mark.parametrize("timed", [True, False])
def test_the_speed_up_is_said_first_then_accuracy(made_bundle, tmp_path, monkeypatch, capsys, timed) -> None:
    """Its document is held against the published schema, as every test's are."""
    from dataclasses import replace

    from vitprune import cli
    from vitprune.pipelines import validate

    verdict = validate(made_bundle, reference="stored", samples=8)
    verdict = replace(
        verdict, comparison=replace(verdict.comparison, accuracy={"pruned": 91.0, "reference": 91.0, "dense": 92.4})
    )
    times = {"median_ms": 2.0}
    entry = {"ratio": 0.8, "ratio_interval": [0.79, 0.81], "batch": 8, "dense": times, "pruned": times}
    speed = entry if timed else None
    made = demo.DemoResult(verdict, demo._facts(verdict, {}, 64, speed), tmp_path / "report.html", ["a note"], speed)
    monkeypatch.setattr(demo, "run", lambda *given: made)
    assert cli.run(["demo", "--json"]) == 0
    told = capsys.readouterr()
    closing = " ".join(told.err.split("PASSED")[-1].split())
    assert ("1.25x as fast as dense (1.23 to 1.27), top-1 91.00 % of 92.40 %" in closing) == timed
    assert closing.index("top-1") < closing.index("the MACs")
    assert (json.loads(told.out)["speed"] is not None) == timed
