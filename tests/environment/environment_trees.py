"""System trees of Jetsons, as far as they are read."""

from __future__ import annotations

from pathlib import Path

RELEASE = (
    "# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
)
DEVICES = {
    "orin-nano": ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "tegra234", (36, "4.3"), "15W"),
    "agx-orin": ("NVIDIA Jetson AGX Orin Developer Kit", "tegra234", (36, "5.0"), "MAXN"),
    "agx-thor": ("NVIDIA Jetson AGX Thor Developer Kit", "tegra264", (38, "2.0"), "120W"),
}


def plant(root: Path, name: str) -> Path:
    """Files and programs of one device below `root`."""
    model, chip, (major, revision), mode = DEVICES[name]
    tree = root / "proc" / "device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(model.encode() + b"\0")
    (tree / "compatible").write_bytes(f"nvidia,board\0nvidia,{chip}\0".encode())
    (root / "etc").mkdir()
    (root / "etc" / "nv_tegra_release").write_text(RELEASE.format(major=major, revision=revision))
    program(root, "usr/sbin/nvpmodel", f'[ "$1" = -q ] && printf "NV Power Mode: {mode}\\n2\\n"')
    program(root, "usr/bin/jetson_clocks", 'echo "this needs root" >&2; exit 1')
    program(root, "usr/bin/tegrastats", 'while :; do echo "RAM 1000/7620MB GR3D_FREQ 0%"; sleep 0.05; done')
    return root


def program(root: Path, place: str, script: str) -> None:
    """A shell script as an executable."""
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
