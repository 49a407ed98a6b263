"""The matrix of forms and methods: what is stored fits timm, a few of its cases run, and what is no pass is told from one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from vitprune.errors import LoadError
from vitprune.reports import models

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import matrix  # noqa: E402
import models_table  # noqa: E402


def test_every_name_stands_in_one_form() -> None:
    stored = models.read()
    if timm.__version__ != stored["timm"]:
        pytest.skip(f"the results are of timm {stored['timm']}, here is {timm.__version__}")
    assert sorted(name for one in stored["forms"] for name in one["names"]) == sorted(matrix.names())


def test_the_page_shows_what_is_stored() -> None:
    page = models_table.PAGE.read_text()
    assert models_table.with_tables(page) == page, "python docs/models_table.py"


@pytest.mark.parametrize(
    ("name", "method", "shapes"),
    [
        ("test_vit", "topk", "padded"),
        ("beit_base_patch16_224", "tome", "dynamic"),
        ("vit_relpos_small_patch16_224", "ats", "padded"),
        ("vit_base_patch16_sapiens2", "tome", "dynamic"),  # heads of keys that queries share
    ],
)
def test_a_case(name: str, method: str, shapes: str) -> None:
    found = matrix.attempt(name, method, shapes)
    assert models.failure(found) == "", found


def test_what_is_refused_says_why() -> None:
    found = matrix.attempt("samvit_base_patch16_224", "tome", "dynamic")
    assert "windows" in models.failure(found)


GOOD = {"parity": 1e-6, "noop": 1e-6, "batch": 1e-6, "pruned": 0.3, "kept": True}


@pytest.mark.parametrize(
    ("change", "said"),
    [({"parity": 2e-4}, "parity"), ({"noop": 2e-5}, "noop"), ({"batch": float("nan")}, "batch"), ({"pruned": 0.0}, "nothing pruned"), ({"kept": False}, "kept"), ({"rtx": "no"}, "rtx"), ({"refused": "VP310"}, "VP310")],
)  # fmt: skip
def test_no_failure_counts_as_a_pass(change: dict[str, Any], said: str) -> None:
    assert models.failure(GOOD) == ""
    assert said in models.failure({**GOOD, **change})


def test_states_of_a_form() -> None:
    cases = {"ats dynamic": GOOD, "ats padded": GOOD, "tome dynamic": GOOD, "topk dynamic": {"refused": "VP1: no"}}
    forms = [{"form": "a", "names": ["x", "y"], "cases": cases}, {"form": "b", "names": ["z"], "cases": {}}]
    stored = {"timm": "0", "methods": {"scoring": ["ats", "topk"], "merging": ["tome", "evit"]}, "forms": forms}
    first, second = models.rows(stored)
    assert first.states == {"ats": "yes", "topk": "no", "tome": "partly", "evit": "not run"}
    assert set(second.states.values()) == {"not run"}
    assert models.shares(stored) == {"ats": (2, 2, 3), "topk": (0, 0, 3), "tome": (0, 2, 3), "evit": (0, 0, 3)}
    assert "| a | 2 | x | yes | no | partly | not run |" in models.markdown(stored)


def test_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="VP604"):
        models.read(tmp_path / "models.json")
