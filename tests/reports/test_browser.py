"""Reports in a real browser: phone and desktop, light and dark; what a reader would stumble over is looked for, not assumed."""

from __future__ import annotations

import shutil
import subprocess

import browser
import pytest

from vitprune.pipelines import validate
from vitprune.reports.page import page
from vitprune.reports.sections import of_bundles, of_document

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
def pages(made_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    result = validate(made_bundle, reference="stored", samples=8).document()
    reports = {
        "one": of_bundles({"bundle": made_bundle}, {"bundle": result}, {"bundle": SPEED}),
        "two": of_bundles({"a": made_bundle, "b": made_bundle}, {}),
        "validate": of_document({"command": "validate", **result}),
        "error": of_document({"command": "export", "status": "error", "error": {"code": "VP100", "message": "x" * 300, "cause": "<b>"}}),
    }  # fmt: skip
    files = {}
    for name, report in reports.items():
        files[name] = folder / f"{name}.html"
        files[name].write_text(page(report), encoding="utf-8")
    return files


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_ask_for_nothing(opened, pages, width, scheme):
    for name, file in pages.items():
        opened.open(file, width, scheme)
        assert opened.value("document.documentElement.scrollWidth <= window.innerWidth"), f"{name} scrolls sideways"
        pictures = opened.value("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
        assert all(pictures)
        assert bool(pictures) == (name in ("one", "two"))
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
