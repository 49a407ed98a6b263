"""What made a bundle is in it, and in its bill of materials."""

from __future__ import annotations

import json
import subprocess

import pytest

from vitprune.bundle import open_bundle
from vitprune.bundle_parts import provenance as made_by
from vitprune.errors import VitpruneError


def test_a_bundle_says_what_made_it(made_bundle):
    document = json.loads((made_bundle.path / made_by.PROVENANCE).read_text())
    assert made_by.PROVENANCE in made_bundle.manifest.files
    assert {"numpy", "onnx", "torch", "timm"} <= set(document["packages"])
    assert document["command"]
    assert not any("/" in text for text in document["command"])


@pytest.mark.parametrize(
    ("given", "shown"),
    [("--data=/home/me/images", "--data=images"), ("/usr/bin/vitprune", "vitprune"), ("prune.r=8", "prune.r=8"), ("-q", "-q")],
)
def test_no_folder_of_the_machine_is_told(given, shown):
    assert made_by.plain(given) == shown


def test_the_commit_and_whether_files_differ_from_it(tmp_path):
    assert made_by.provenance(tmp_path, [])["git"] is None
    run = lambda *words: subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)  # noqa: E731
    run("init", "-q")
    (tmp_path / "a").write_text("1")
    run("add", "a")
    run("-c", "user.name=n", "-c", "user.email=e@e", "commit", "-qm", "m")
    clean = made_by.provenance(tmp_path, [])["git"]
    assert len(clean["commit"]) == 40
    assert not clean["dirty"]
    (tmp_path / "a").write_text("2")
    assert made_by.provenance(tmp_path, [])["git"]["dirty"]


def test_the_bill_of_materials(made_bundle, bundle_copy):
    pytest.importorskip("cyclonedx")
    from vitprune.reports.sbom import sbom

    document = json.loads(sbom(made_bundle))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    listed = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    assert listed == made_bundle.manifest.files
    assert {"torch", "vitprune"} <= {part["name"] for part in document["components"]}
    bundle = open_bundle(bundle_copy)
    (bundle_copy / made_by.PROVENANCE).write_text("{}")
    bundle.add_files([made_by.PROVENANCE])
    with pytest.raises(VitpruneError) as caught:
        sbom(open_bundle(bundle_copy))
    assert caught.value.code == "VP656"


def test_an_invalid_bill_is_refused(made_bundle, monkeypatch):
    pytest.importorskip("cyclonedx")
    from cyclonedx.output.json import JsonV1Dot6

    from vitprune.reports.sbom import sbom

    monkeypatch.setattr(JsonV1Dot6, "output_as_string", lambda self, indent: '{"bomFormat": "Other"}')
    with pytest.raises(VitpruneError) as caught:
        sbom(made_bundle)
    assert caught.value.code == "VP341"
