"""JUnit XML: by schema, with counts that are those of the cases, whatever was found."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vitprune import cli
from vitprune.errors import LoadError
from vitprune.reports.junit import junit_xml

GATE = {"name": "logits_max_abs", "limit": 1e-4, "seen": 2e-6, "passed": True}
DOCUMENTS = {
    "passed": {"command": "validate", "bundle": "b", "backend": "onnxruntime", "gates": [GATE]},
    "failed": {"command": "validate", "bundle": "<b> & \x1b", "gates": [GATE | {"passed": False, "seen": None}]},
    "undecided": {"command": "validate", "gates": [GATE | {"passed": False, "undecided": True, "interval": [0.1, 0.3]}]},
    "blocked": {
        "command": "check",
        "findings": [
            {"rule": "VP403", "title": "operators", "verdict": "blocked", "text": "t", "mend": "m"},
            {"rule": "VP401", "title": "opset", "verdict": "likely", "text": "t", "mend": ""},
        ],
    },
    "slower": {
        "command": "benchmark",
        "changes": [{"bundle": "b", "batch": 1, "before": 0.5, "after": 0.6, "change": 1.2, "low": 1.1, "high": 1.3, "verdict": "regression"}],
    },
    "error": {"command": "export", "status": "error", "error": {"code": "VP100", "message": "no such recipe", "cause": "\ufffe", "next_step": ""}},
}  # fmt: skip
WRONG = {"passed": (0, 0), "failed": (1, 0), "undecided": (1, 0), "blocked": (1, 0), "slower": (1, 0), "error": (0, 1)}


@pytest.fixture(scope="module")
def schema():
    xmlschema = pytest.importorskip("xmlschema")
    return xmlschema.XMLSchema(str(Path(__file__).parent / "junit.xsd"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_by_schema_and_counted(schema, name):
    text = junit_xml([DOCUMENTS[name], DOCUMENTS["passed"]])
    schema.validate(text)
    root = ElementTree.fromstring(text)
    assert (int(root.attrib["failures"]), int(root.attrib["errors"])) == WRONG[name]
    for suite in root:
        for word in ("failure", "error"):
            assert int(suite.attrib[f"{word}s"]) == len(suite.findall(f"testcase/{word}"))
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(' errors="0"', ""), ("<system-out>", "<system-outs>"), ('tests="1"', 'tests="one"'), (' name="logits_max_abs"', "")],
)
def test_the_schema_sees_what_is_wrong(schema, right, wrong):
    text = junit_xml([DOCUMENTS["passed"]])
    assert right in text
    planted = text.replace(right, wrong).replace(
        "</system-out>", "</system-outs>" if wrong == "<system-outs>" else "</system-out>"
    )
    assert not schema.is_valid(planted)


def test_nothing_that_fails_is_no_report():
    with pytest.raises(LoadError) as caught:
        junit_xml([{"command": "doctor", "status": "ok"}])
    assert caught.value.code == "VP658"


def test_of_bundles_and_of_files(schema, bundle_copy, tmp_path, capsys):
    file = tmp_path / "junit.xml"
    (bundle_copy / "reports" / "validate.json").unlink(missing_ok=True)
    assert cli.run(["report", str(bundle_copy), "--junit", str(file), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VP658"
    assert cli.run(["validate", str(bundle_copy), "--reference", "stored", "--junit", str(file)]) == 0
    schema.validate(str(file))
    assert cli.run(["report", str(bundle_copy), str(bundle_copy), "--junit", str(tmp_path / "two.xml")]) == 0
    assert len(ElementTree.parse(tmp_path / "two.xml").getroot()) == 2
    assert cli.run(["report", str(bundle_copy), "--junit", str(tmp_path / "again.xml")]) == 0
    schema.validate(str(tmp_path / "again.xml"))
    capsys.readouterr()
