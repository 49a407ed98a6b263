"""The demo's own decisions; the whole of it is `make demo`."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitprune import demo
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
