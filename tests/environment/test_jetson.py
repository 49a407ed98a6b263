"""Module, L4T, JetPack and power mode out of the system's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
from environment_trees import plant, program

from vitprune.environment.commands import find_program, first_line, output_of
from vitprune.environment.jetson import jetpack_of, parse_l4t, power_mode, power_state, read_jetson


@pytest.mark.parametrize(
    ("name", "family", "capability", "l4t", "jetpack", "tensorrt", "mode"),
    [
        ("orin-nano", "Orin", "87", "36.4.3", "6.2", "10.3.0", "15W"),
        ("agx-orin", "Orin", "87", "36.5.0", "6.2.2", "10.3.0", "MAXN"),
        ("agx-thor", "Thor", "110", "38.2.0", "7.0", "10.13.3", "120W"),
    ],
)
def test_devices(
    tmp_path: Path, name: str, family: str, capability: str, l4t: str, jetpack: str, tensorrt: str, mode: str
) -> None:
    plant(tmp_path, name)
    jetson = read_jetson(tmp_path)
    assert jetson is not None
    assert jetson.model.startswith("NVIDIA Jetson")
    assert (jetson.family, jetson.compute_capability) == (family, capability)
    assert (jetson.l4t, jetson.jetpack, jetson.tensorrt) == (l4t, jetpack, tensorrt)
    state = power_state(tmp_path)
    assert power_mode(state) == mode
    assert state["jetson_clocks"] == {"missing": "exit code 1: this needs root"}
    assert state["tegrastats"] == {"value": "RAM 1000/7620MB GR3D_FREQ 0%"}
    assert state["nv_tegra_release"]["value"].startswith("# R")
    assert state["nvidia_smi"] == {"missing": "not installed"}


def test_no_jetson(tmp_path: Path) -> None:
    assert read_jetson(tmp_path) is None
    assert power_mode(power_state(tmp_path)) == ""


def test_container_without_device_tree(tmp_path: Path) -> None:
    """Only the release file is mounted: release known, module not."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.4, GCID: 1")
    jetson = read_jetson(tmp_path)
    assert jetson is not None
    assert (jetson.model, jetson.family, jetson.jetpack) == ("unknown", "", "6.2.1")


def test_module_without_release_file(tmp_path: Path) -> None:
    plant(tmp_path, "agx-orin")
    (tmp_path / "etc" / "nv_tegra_release").unlink()
    jetson = read_jetson(tmp_path)
    assert jetson is not None
    assert (jetson.family, jetson.l4t, jetson.jetpack) == ("Orin", "", "")


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [("35.6.4", "5.1.6"), ("35.6.1", ""), ("36.3.0", "6.0"), ("36.4.4", "6.2.1"), ("38.4.0", "7.1"), ("39.2.0", "7.2"), ("40.1", ""), ("", "")],
)  # fmt: skip
def test_releases(l4t: str, jetpack: str) -> None:
    assert jetpack_of(l4t)[0] == jetpack


def test_release_text() -> None:
    assert parse_l4t("# R39 (release), REVISION: 2.0, GCID: 5") == "39.2.0"
    assert parse_l4t("something else") == ""


def test_programs(tmp_path: Path) -> None:
    program(tmp_path, "usr/bin/slow", "sleep 20")
    program(tmp_path, "usr/bin/mute", "exit 3")
    assert find_program("sh", tmp_path) is None
    assert output_of(find_program("slow", tmp_path), timeout=0.2) == ("", "no answer within 0.2 s")
    assert output_of(find_program("mute", tmp_path)) == ("", "exit code 3: it said nothing")
    assert first_line(find_program("slow", tmp_path), timeout=0.2) == ("", "no line within 0.2 s")
    assert first_line(None) == ("", "not installed")
    (tmp_path / "usr/bin/mute").write_text("not a program")
    assert output_of(find_program("mute", tmp_path))[1] != ""
