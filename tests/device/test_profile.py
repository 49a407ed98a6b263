"""Latency tables measured inside a device package, where there is no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from device_package import run_sh

from vitprune import targets
from vitprune.bundle import Bundle
from vitprune.device import entry
from vitprune.device.package import job_of, write_package
from vitprune.device.profiling import Sizes, Tokens, block_time, parts
from vitprune.methods.base import BlockTokens
from vitprune.methods.cost import block_macs
from vitprune.tuning import packing
from vitprune.tuning.table import read_table

TARGET = "jetson-orin"


def test_a_block_with_a_site_costs_in_proportion_to_its_macs() -> None:
    sizes = Sizes(32, 2, 64, 1)

    def macs(*counts: float) -> float:
        return block_macs(BlockTokens(*counts), 32, 64)

    for counts in ((17.0, 17.0, 17.0), (17.0, 9.0, 9.0), (17.0, 17.0, 9.0)):
        assert block_time(sizes, Tokens(*counts), lambda n: macs(n, n, n)) == pytest.approx(macs(*counts))
    times = {"rest": 1.0, "dense": 5.0, "tome": 6.0}
    found = parts(sizes, 17, times, {"tome": [Tokens(17, 17, 17), Tokens(17, 17, 17)]})
    assert found == {"rest": 1.0, "block": 2.0, "tome": pytest.approx(1.0)}


def test_a_package_measures_a_table_without_torch(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "token_counts", lambda sizes, wanted: [sizes.tokens // 2, sizes.tokens])
    more = packing.profile_files(bundle, (1, 2))
    assert packing.profile_files(bundle, (1, 2)) == more, "the same bytes again"
    graphs = sum(len(value) for name, value in more.items() if name.endswith(".pb") and "weights" not in name)
    assert graphs < len(more["profile/weights.pb"]), "weights are there once"
    target = targets.load(TARGET)
    manifest = write_package(bundle, target, job_of(bundle, target, (1, 2, 8), None), tmp_path / "p.tar", more)
    with tarfile.open(tmp_path / "p.tar") as archive:
        archive.extractall(tmp_path / "place", filter="data")
    package = tmp_path / "place" / manifest["name"]
    block = tmp_path / "block"
    block.mkdir()
    (block / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'timm', 'onnx', 'pydantic', 'yaml'): sys.modules[name] = None\n"
    )
    done = run_sh(package, "--rehearse", "--profile-tokens", "--rounds", "2", PYTHONPATH=str(block))
    assert done.returncode == 0, done.stderr
    out = package / "out-rehearsal"
    assert "latency-table.json" in json.loads((out / "result.json").read_text())["files"]
    table = read_table(out / "latency-table.json")
    assert sorted(table.batches) == [1, 2]
    assert all(set(part.sites) == {bundle.recipe.prune.method} for part in table.batches.values())
    assert table.batches[1].block.tokens[-1] == json.loads(more["profile/profile.json"])["places"][-1]["tokens"]
    entry.verify(package)


def test_a_package_without_models_says_so(unpacked: Path) -> None:
    done = run_sh(unpacked, "--rehearse", "--profile-tokens")
    assert done.returncode == 2
    assert "error VP251" in done.stderr


def test_engines_are_built_without_pydantic(unpacked: Path) -> None:
    """What a device imports to build an engine is there without the packages that only the host has."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'timm', 'onnx', 'pydantic', 'yaml', 'typer', 'rich')))"
    code = f"{blocked}; sys.path.insert(0, {str(unpacked / 'lib')!r}); import vitprune.engines.building, vitprune.graph.lowering.logits"
    done = subprocess.run([sys.executable, "-B", "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
