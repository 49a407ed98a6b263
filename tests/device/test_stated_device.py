"""build-engine with --module, --jetpack, --tensorrt and --sm: pre-flight and package are for the device that is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitprune import cli, console
from vitprune.bundle import Bundle
from vitprune.device.job import Job
from vitprune.device.package import read_manifest
from vitprune.preflight import check
from vitprune.support.gpus import Gpu


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "settings", console.Settings())


def run(capsys: pytest.CaptureFixture[str], bundle: Bundle, target: str, *more: str) -> tuple[int, dict[str, Any], str]:
    code = cli.run(["build-engine", str(bundle.path), "-t", target, "--no-trials", "--json", *more])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


def job(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = read_manifest(Path(document["package"]["path"]))["job"]
    return found


def findings(document: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {one["rule"]: one for one in document["package"]["findings"]["preflight"]["report"]["findings"]}


def test_nothing_stated(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, shown = run(capsys, bundle, "jetson-orin")
    assert code == 0
    made = job(document)
    assert (made["stated"], made["target"]["workspace_mib"], made["compute_capability"]) == ({}, None, "87")
    assert findings(document)["VP410"]["verdict"] == "unverified", "the oldest release, TensorRT 10.3, is assumed"
    assert "made for" not in shown


def test_module_and_jetpack(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, shown = run(capsys, bundle, "jetson-orin", "--module", "nano-8", "--jetpack", "7.2", "--sm", "8.7")
    assert code == 0
    made = job(document)
    stated = {"module": "nano-8", "jetpack": "7.2", "tensorrt": "10.16.2", "sm": "87"}
    assert made["stated"] == document["package"]["stated"] == stated
    assert made["target"]["workspace_mib"] == 2048, "a quarter of the module's memory"
    report = document["package"]["findings"]["preflight"]["report"]
    assert (report["runtime"], report["module"]) == ("TensorRT 10.16.2 (JetPack 7.2)", "nano-8")
    assert findings(document)["VP410"]["verdict"] == "likely"
    assert "Orin Nano 8 GB" in findings(document)["VP409"]["text"]
    assert "made for module nano-8, jetpack 7.2, tensorrt 10.16.2, sm 87" in shown


def test_given_workspace_counts_more_than_the_module(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(capsys, bundle, "jetson-orin", "--module", "nano-8", "--workspace", "1GiB")[1]
    assert job(document)["target"]["workspace_mib"] == 1024


def test_tensorrt_alone(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(capsys, bundle, "jetson-thor", "--tensorrt", "11.4.1")[1]
    assert job(document)["stated"] == {"tensorrt": "11.4.1"}
    assert document["package"]["findings"]["preflight"]["report"]["runtime"] == "TensorRT 11.4.1"


def test_card_of_a_server(bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is compiled and the engine accepted for this card alone; the GPU of this machine does not count."""
    monkeypatch.setattr(check, "local_gpus", lambda: [Gpu("RTX 3060", "86", 12288, False)])
    code, document, _ = run(capsys, bundle, "server", "--package", "--module", "h100")
    assert code == 0, document
    made = job(document)
    assert (made["compute_capability"], made["target"]["architectures"]) == ("90", ["90"])
    assert made["target"]["workspace_mib"] is None, "TensorRT's own default on a discrete GPU"
    code, document, _ = run(capsys, bundle, "server", "--package", "--sm", "8.9", "--force")
    assert (code, job(document)["target"]["architectures"]) == (0, ["89"])


@pytest.mark.parametrize(
    ("target", "options", "code"),
    [
        ("jetson-orin", ["--module", "nano-9"], "VP220"),
        ("jetson-orin", ["--jetpack", "5.1"], "VP221"),
        ("rtx", ["--jetpack", "7.2"], "VP222"),
        ("jetson-orin", ["--tensorrt", "9.0"], "VP223"),
        ("jetson-orin", ["--sm", "x"], "VP224"),
        ("rtx", ["--sm", "9.0"], "VP225"),
        ("jetson-orin", ["--sm", "8.9"], "VP400"),
        ("server", ["--package", "--module", "h100", "--sm", "8.0"], "VP400"),
    ],
)
def test_wrong_statements(bundle: Bundle, capsys: pytest.CaptureFixture[str], target: str, options: list[str], code: str) -> None:
    status, document, _ = run(capsys, bundle, target, *options)
    assert (status, document["error"]["code"]) == (2, code)
    assert not (bundle.path / "engines").exists()


@pytest.mark.parametrize(
    ("stated", "here", "differs"),
    [
        ({}, "10.3.0", False),
        ({"tensorrt": "10.3.0"}, "10.3.0.30", False),
        ({"tensorrt": "10.3.0"}, "10.16.2", True),
    ],
)
def test_the_device_tells_another_tensorrt(tmp_path: Path, stated: dict[str, str], here: str, differs: bool) -> None:
    said = Job(tmp_path, {"stated": stated}).differs(here)
    assert bool(said) == differs
    assert not differs or ("10.3" in said and "10.16.2" in said)
