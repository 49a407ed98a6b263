"""Reports in a real browser: phone and desktop, light and dark; what a reader would stumble over is looked for, not assumed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import browser
import numpy as np
import pytest

from vitprune.pipelines import validate
from vitprune.reports import tokens, tuning
from vitprune.reports.html import html_report
from vitprune.reports.page import page
from vitprune.reports.parts import Report
from vitprune.reports.sections import of_bundles, of_document
from vitprune.tuning.outcome import Outcome
from vitprune.tuning.tune import Tuned
from vitprune.validation.compare import Gate

WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def opened():
    if browser.program() is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    with browser.Browser() as running:
        yield running


TIMING = {"median_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "images_per_second": 1000.0}
CLOCKS = {
    "before": {"locked": None, "why": "the kernel does not tell"},
    "after": {"locked": None, "why": "the kernel does not tell"},
}
SPEED = {"results": [{"bundle": "b", "batch": 1, "ratio": 0.5, "pruned": TIMING, "dense": TIMING}], "clocks": CLOCKS}


@pytest.fixture(scope="module")
def pages(made_bundle, made, cascade, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    result = validate(made_bundle, reference="stored", samples=8).document()
    reports = {
        "one": of_bundles({"bundle": made_bundle}, {"bundle": result}, {"bundle": SPEED}),
        "two": of_bundles({"a": made_bundle, "b": made_bundle}, {}),
        "tokens": Report("merged, halted, at exits", "", tuple(part for b in (*made.values(), cascade) for part in tokens.sections("b", b))),
        "validate": of_document({"command": "validate", **result}),
        "error": of_document({"command": "export", "status": "error", "error": {"code": "VP100", "message": "x" * 300, "cause": "<b>"}}),
    }  # fmt: skip
    files = {}
    for name, report in reports.items():
        files[name] = folder / f"{name}.html"
        files[name].write_text(page(report), encoding="utf-8")
    files["demo"] = folder / "demo.html"
    files["demo"].write_text(of_a_validation(made_bundle), encoding="utf-8")
    files["tune"] = tuning.write_report(folder, SEARCH)
    return files


def of_a_validation(bundle):
    """The demo's page: gates with intervals, drawn sites, merged groups."""
    verdict = validate(bundle, reference="stored", samples=8)
    gates = [
        *verdict.gates,
        Gate("accuracy drop against the dense model", 1.0, 0.75, False, " points", (-0.25, 1.75), True, 4000),
    ]
    run = bundle.run(bundle.samples()["images"][:8])
    arrays = {"images": bundle.samples()["images"][:8], "run_logits": run.logits, "labels": run.logits.argmax(axis=1)}
    facts = [["model.onnx", "1.27 MiB", "1.31 MiB"], ["accuracy on the test images", "92.40 %", "91.70 % (-0.70)"]]
    groups = [np.zeros((8, 64), np.int64) for _ in run.kept]
    return html_report(
        replace(verdict, gates=gates), arrays, run.kept, bundle.manifest.preprocessing, (8, 8), facts=facts, groups=groups,
        class_names=["T-shirt/top", "a name that is long enough to be wider than its picture"],
    )  # fmt: skip


def outcome(number, method, spent, agreement):
    keys = {"method": method, "layers": list(range(12)), "tau": 0.123456789}
    return Outcome(
        number, f"{method}_calibrated_to_0.5", "searched", keys, None, None, spent, spent, agreement, 1 - agreement, [49.0] * 12
    )


TRIED = [outcome(n, method, 0.4 + 0.02 * n, 0.9 + 0.004 * n) for n, method in enumerate(("tome", "ward_merge", "topk") * 4)]
SEARCH = Tuned(
    TRIED, TRIED[3], TRIED[:4], "it agrees with the dense model on the most images",
    {"trials": 20, "images": 256, "data": "test images", "model": "vit_tiny", "budget": {"macs": 0.5, "latency": None}},
)  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_ask_for_nothing(opened, pages, width, scheme):
    for name, file in pages.items():
        opened.open(file, width, scheme)
        assert opened.value("document.documentElement.scrollWidth <= window.innerWidth"), f"{name} scrolls sideways"
        pictures = opened.value("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
        assert all(pictures)
        assert bool(pictures) == (name in ("one", "two", "tokens", "demo"))
        assert opened.requests() == []
        assert opened.complaints() == []
        dark = opened.value("getComputedStyle(document.body).backgroundColor") == "rgb(16, 22, 29)"
        assert dark == (scheme == "dark")


def test_what_this_looks_for_it_finds(opened, tmp_path):
    """Planted: a wide block, a picture from elsewhere that is not there, an error."""
    file = tmp_path / "bad.html"
    file.write_text(
        '<html><body><div style="width:3000px">x</div><img src="missing.png"><script>throw Error("no")</script></body></html>'
    )
    opened.open(file, 390, "light")
    assert not opened.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert opened.value("[...document.images].map(i => i.complete && i.naturalWidth > 0)") == [False]
    assert any("missing.png" in url for url in opened.requests())
    assert any("Error: no" in text for text in opened.complaints())


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    if shutil.which("npm") is None:
        pytest.skip("no npm here, which axe-core comes by")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "axe-core@4"], cwd=folder, capture_output=True, timeout=300
    )
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if done.returncode or not source.is_file():
        pytest.skip("npm could not fetch axe-core")
    return source.read_text(encoding="utf-8")


def faults(opened, axe):
    opened.value(axe + ";0")
    found = opened.value("axe.run().then(r => r.violations.map(v => [v.impact, v.id]))")
    return [name for impact, name in found if impact in SERIOUS]


def test_axe_finds_no_serious_fault(opened, pages, axe, tmp_path):
    for scheme in SCHEMES:
        for file in pages.values():
            opened.open(file, 390, scheme)
            assert faults(opened, axe) == []
    bad = tmp_path / "bad.html"
    bad.write_text('<html><body><img src="data:,"><p style="color:#eee;background:#fff">hard to read</p></body></html>')
    opened.open(bad, 390, "light")
    assert "image-alt" in faults(opened, axe)
