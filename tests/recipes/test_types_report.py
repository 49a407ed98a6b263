"""What is said of types: generated from stored figures, bad news included."""

import sys

from helpers import RECIPES, script

sys.path.insert(0, str(RECIPES / "fashion_mnist"))

import types_report  # noqa: E402

FLIP = {"images": 1000, "legal": 3, "illegal": 0, "decisions": 100, "could_fail": 90, "margin": 0.1, "largest": 0.5}


def test_illegal_flips_and_gates_that_could_not_fail_are_named():
    assert types_report.verdict_of({"topk": {"fp16": FLIP}}) == "No flip is illegal, of 1 methods."
    wrong = types_report.verdict_of({"topk": {"fp16": FLIP}, "evit": {"fp16": {**FLIP, "illegal": 2}}})
    assert wrong == "Illegal flips: evit fp16."
    assert "nothing is shown, for ats bf16" in types_report.verdict_of({"ats": {"bf16": {**FLIP, "could_fail": 0}}})
    assert types_report.flip_row("topk", "fp16", FLIP)[-2:] == ["90.0 %", "–"]
    logits = {"largest": 5.0, "median": 1e-3, "p99": 5e-3, "max": 0.01, "limit": 0.25}
    assert types_report.flip_row("topk", "fp16", {**FLIP, "logits": logits})[-1] == "0.1, 0.5, 1 (5)"


def test_a_type_is_shown_with_its_file_its_memory_and_no_speed():
    one = {
        "images": 1000, "top1": 87.4, "bytes": 2**20, "drop": [0.0, -0.1, 0.05], "agreement": [99.9, 99.5, 100.0], "sites": [{"images": 3}],
        "reference": FLIP,
    }  # fmt: skip
    line = types_report.rows({"topk": {"modes": {"fp16": one}}}, {"topk": {"fp16": {"mib": 42.0}}}, {})[0]
    assert line[4:7] == ["1.00 MiB", "42.0 MiB", "emulated"]
    assert line[8] == "below"
    assert line[-1] == "3/0 on 1,000 (0.50; 90.0 %)"
    later = {"topk": {"fp16": {**FLIP, "legal": 2}}}
    assert types_report.rows({"topk": {"modes": {"fp16": one}}}, {}, later)[0][-1] == "2/0 on 1,000 (0.50; 90.0 %)"


def test_an_engine_beyond_its_goal_is_said_with_its_parts():
    report = script(RECIPES.parent / "benchmarks" / "report.py")
    full = {"model": "deit-s", "method": "topk", "mode": "fp32", "engine_bytes": 100e6, "weight_bytes": 88e6, "engine_text": 10e6}
    half = {**full, "mode": "fp16", "engine_bytes": 57e6, "weight_bytes": 45e6, "engine_text": 9e6}
    text = "\n".join(report.engine_parts([full, half]))
    assert "topk fp16: 0.570 of fp32, goal 0.55 NOT met" in text
    assert "text (kernels' sources and descriptions) 9.0, the rest 3.0" in text
    assert "goal 0.55 met" in "\n".join(report.engine_parts([full, {**half, "engine_bytes": 55e6}]))


def test_memory_by_type():
    assert types_report.memory_cell({"mib": 47.12, "file_bytes": 2**20}) == "47.1, 1.00"
    assert types_report.memory_cell(None) == "–"
