"""The model card: what the reports say, and no more."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from vitprune import cli, open_bundle
from vitprune.errors import LoadError
from vitprune.reports.card import card


def gates(passed: bool = True) -> list[dict]:
    return [{"name": "logits_max_abs", "limit": 1e-4, "seen": 3.25e-6 if passed else 0.125, "passed": passed}]


def validated(bundle, *, status="passed", of=None, accuracy=None, passed=True):
    document = {
        "status": status, "exit_code": 0, "bundle": of or open_bundle(bundle).manifest.name, "backend": "onnxruntime", "reference": "torch",
        "data": "8 synthetic images", "evidence": "graph = reference on CPU", "gates": gates(passed), "macs": {}, "comparison": {"accuracy": accuracy},
    }  # fmt: skip
    (bundle / "reports" / "validate.json").write_text(json.dumps(document))


def test_a_bundle_that_was_not_validated_says_so(bundle_copy):
    assert cli.run(["card", str(bundle_copy)]) == 0
    text = (bundle_copy / "README.md").read_text()
    assert "Not validated since it was written" in text
    assert "passed" not in text
    assert "untrained" in text  # the fixture's weights are random
    assert "No latency is claimed" in text
    facts = ModelCard(text).data.to_dict()
    assert facts["pipeline_tag"] == "image-classification"
    assert "ats" in facts["tags"]
    assert "license" not in facts
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "onnx"
    manifest = open_bundle(bundle_copy).manifest  # the card does not break the bundle
    assert manifest.files["model.onnx"] in text


def test_what_the_last_validation_said(bundle_copy):
    validated(bundle_copy, accuracy={"dense": 91.5, "pruned": 90.25})
    text = card(open_bundle(bundle_copy))
    assert "`vitprune validate` passed: onnxruntime against torch" in text
    assert "3.25e-06" in text
    assert "90.25" in text
    validated(bundle_copy)
    assert "No accuracy was measured" in card(open_bundle(bundle_copy))
    validated(bundle_copy, status="failed", passed=False)
    text = card(open_bundle(bundle_copy))
    assert "**FAILED**" in text
    assert "0.125 | **does not hold**" in text


@pytest.mark.parametrize("planted", [{"passed": False}, {"status": "failed"}, {"status": "splendid"}, {"of": "another-ats"}])
def test_a_report_that_cannot_be_is_refused(bundle_copy, planted):
    validated(bundle_copy, **planted)
    with pytest.raises(LoadError) as caught:
        card(open_bundle(bundle_copy))
    assert caught.value.code == "VP657"


def test_names_open_no_markup(bundle_copy):
    validated(bundle_copy)
    path = bundle_copy / "reports" / "validate.json"
    path.write_text(path.read_text().replace("8 synthetic images", "<script>a|b</script>"))
    text = card(open_bundle(bundle_copy))
    assert "<script>" not in text
    assert "a\\|b" in text
