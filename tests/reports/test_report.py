"""`vitprune report`: the same facts as HTML, Markdown and job summary."""

from __future__ import annotations

import json
import math

import pytest

from vitprune import cli, console
from vitprune.reports.markdown import markdown
from vitprune.reports.page import page
from vitprune.reports.sections import of_document
from vitprune.support import json_text

GATE = {"name": "decisions", "limit": 0, "seen": 2, "passed": False}
SPEED = {
    "kind": "vitprune benchmark", "status": "ok", "statement": "whole calls",
    "results": [{
        "bundle": "b", "batch": 1, "ratio": 0.5,
        "pruned": {"median_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "images_per_second": 1000.0}, "dense": None,
    }],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_settings():
    before = vars(console.settings).copy()
    yield
    for name, value in before.items():
        setattr(console.settings, name, value)


def call(capsys, *arguments):
    code = cli.run([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_what_a_command_found_is_in_the_report():
    failed = {"command": "validate", "status": "failed", "gates": [GATE], "bundle": "<script>|x"}
    for text in (page(of_document(failed)), markdown(of_document(failed))):
        assert "FAILED" in text
        assert "broken" in text
        assert "<script>" not in text
    assert "\\|x" in markdown(of_document(failed))
    assert "2.00x" in markdown(of_document(SPEED))
    other = markdown(of_document({"command": "doctor", "status": "ok", "deep": {"list": list(range(30)), "key": 1.5}}))
    assert "deep.key" in other
    assert "30 in all" in other


def test_a_figure_that_is_not_finite_is_written_as_null_and_reported():
    text = json_text.written(
        {"gates": [{**GATE, "seen": math.nan}], "others": (math.inf, 1.5), "command": "validate", "status": "failed"}
    )
    document = json_text.parse(text)
    assert document["gates"][0]["seen"] is None
    assert document["others"] == [None, 1.5]
    assert "not finite" in markdown(of_document(document))
    assert "not finite" in page(of_document(document))


def test_bundles_and_results(capsys, made_bundle, bundle_copy, tmp_path, monkeypatch):
    html, text, summary = tmp_path / "r.html", tmp_path / "r.md", tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    code, found = call(capsys, "report", made_bundle.path, bundle_copy, "--html", html, "--markdown", text, "--summary")
    assert (code, len(found["written"])) == (0, 3)
    assert html.read_text().count("data:image/png") > 4
    assert "http" not in html.read_text()
    assert "| method | ats | ats |" in text.read_text()
    assert text.read_text() in summary.read_text()
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert call(capsys, "report", made_bundle.path, "--summary")[1]["error"]["code"] == "VP107"


@pytest.mark.parametrize("content", ["", "[]", "no json", '{"command": "validate", "gates": 3}', '{"results": [{}]}'])
def test_what_is_no_result_is_refused(capsys, tmp_path, content):
    file = tmp_path / "x.json"
    file.write_text(content)
    code, found = call(capsys, "report", file)
    assert (code, found["error"]["code"]) == (2, "VP655")
    assert call(capsys, "report", tmp_path / "absent.json")[1]["error"]["code"] == "VP655"
    assert call(capsys, "report", tmp_path)[1]["error"]["code"] == "VP600"
