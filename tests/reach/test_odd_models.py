"""Models that are no plain ViTs: refused by name with a reason, by the command as it is typed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from vitprune.reports import odd_models

sys.path.insert(0, str(Path(__file__).parent))

import odd  # noqa: E402


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("convnext_atto", "no attention between tokens"),
        ("pit_ti_224", "stages"),
        ("xcit_nano_12_p16_224", "channels"),
        ("swinv2_cr_tiny_224", "windows"),
    ],
)
def test_export_refuses_it_and_says_why(name: str, said: str) -> None:
    found = odd.attempt(name)
    assert odd_models.failure(found) == "", found
    assert said in found["cause"]


def test_the_stored_answers_are_refusals_of_forty_and_more() -> None:
    stored = odd_models.read()
    if timm.__version__ != stored["timm"]:
        pytest.skip(f"the answers are of timm {stored['timm']}, here is {timm.__version__}")
    assert sorted(stored["models"]) == sorted(odd.NAMES)
    assert len(odd.NAMES) >= 40
    assert {name: why for name, one in stored["models"].items() if (why := odd_models.failure(one))} == {}


REFUSAL = {"exit_code": 2, "written": False, "code": "VP310", "message": "no", "cause": "windows", "next_step": "another"}


@pytest.mark.parametrize(
    ("change", "said"),
    [({"exit_code": 0}, "exit code 0"), ({"code": "VP198"}, "VP198"), ({"code": ""}, "none"), ({"written": True}, "bundle"), ({"cause": ""}, "cause"), ({"next_step": ""}, "next_step")],
)  # fmt: skip
def test_no_other_answer_counts_as_a_refusal(change: dict[str, Any], said: str) -> None:
    assert odd_models.failure(REFUSAL) == ""
    assert said in odd_models.failure({**REFUSAL, **change})
