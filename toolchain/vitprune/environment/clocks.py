"""Whether the clocks of what is measured are held: a latency at clocks that wander is worth little."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vitprune.environment.jetson import power_mode, power_state
from vitprune.errors import TargetError

CPUFREQ = "sys/devices/system/cpu"


def state(gpu: bool, root: Path = Path("/")) -> dict[str, Any]:
    """Clocks and power as they can be read here.

    Args:
        gpu: whether a GPU is measured. root: where the system's files lie.

    Returns:
        JSON-ready: power (each source with its value or why it is missing), power_mode, cpu (governor, lowest and highest kHz of every
        core that tells), locked: True, False, or None where it cannot be told; why: one sentence.
    """
    power, cores = power_state(root), cpu_clocks(root)
    locked, why = _gpu(power) if gpu else _cpu(cores)
    return {"power": power, "power_mode": power_mode(power), "cpu": cores, "locked": locked, "why": why, "watts": watts(power)}


def cpu_clocks(root: Path) -> dict[str, dict[str, str]]:
    """Core -> governor, lowest and highest frequency in kHz, where the kernel tells."""
    found = {}
    for folder in sorted((root / CPUFREQ).glob("cpu[0-9]*/cpufreq")):
        names = {"governor": "scaling_governor", "min_khz": "scaling_min_freq", "max_khz": "scaling_max_freq"}
        values = {key: _text(folder / name) for key, name in names.items()}
        if any(values.values()):
            found[folder.parent.name] = values
    return found


def watts(power: dict[str, dict[str, str]]) -> float | None:
    """Power draw by nvidia-smi or tegrastats (VDD_IN), or None."""
    smi = re.search(r"([\d.]+) W\b", power.get("nvidia_smi", {}).get("value", ""))
    if smi:
        return float(smi[1])
    tegra = re.search(r"VDD_IN (\d+)mW", power.get("tegrastats", {}).get("value", ""))
    return int(tegra[1]) / 1000 if tegra else None


def sm_clocks(power: dict[str, dict[str, str]]) -> list[int]:
    """MHz of the SMs of every GPU that nvidia-smi lists, now and at most, one after the other; [] where it does not say."""
    return [int(found) for found in re.findall(r"(\d+) MHz", power.get("nvidia_smi", {}).get("value", ""))]


def require_locked(before: dict[str, Any]) -> None:
    """Refuse to measure where clocks are not known to be held.

    Raises:
        TargetError: VP247.
    """
    if before["locked"] is not True:
        raise TargetError(
            247, "the clocks are not locked", cause=before["why"],
            next_step="Jetson: nvpmodel -m 0, jetson_clocks; card: nvidia-smi -lgc MHZ,MHZ; CPU: cpupower frequency-set with equal limits",
        )  # fmt: skip


def _gpu(power: dict[str, dict[str, str]]) -> tuple[bool | None, str]:
    shown = power.get("jetson_clocks", {}).get("value", "")
    if found := re.search(r"GPU\s+MinFreq=(\d+)\s+MaxFreq=(\d+)", shown):
        held = found[1] == found[2]
        return held, f"jetson_clocks: the GPU runs between {found[1]} and {found[2]} Hz"
    clocks = sm_clocks(power)
    if len(clocks) >= 2:
        held = clocks[0] == clocks[1]
        word = "at its highest clock while idle" if held else "below its highest clock while idle, so it will change under load"
        return held, f"nvidia-smi: {clocks[0]} of {clocks[1]} MHz: {word}"
    return None, "neither jetson_clocks nor nvidia-smi tells the clocks of a GPU here"


def _cpu(cores: dict[str, dict[str, str]]) -> tuple[bool | None, str]:
    if not cores:
        return None, "the kernel does not tell the CPU's frequencies here"
    free = [name for name, core in cores.items() if not core["min_khz"] or core["min_khz"] != core["max_khz"]]
    return (
        not free,
        f"{free[0]} may run from {cores[free[0]]['min_khz']} to {cores[free[0]]['max_khz']} kHz"
        if free
        else "all cores are held",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
