"""Which Jetson this is, read from the system's own files; every path lies below a root, so that other trees can be read too."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitprune.environment.commands import find_program, first_line, output_of

# L4T release -> (JetPack, TensorRT it ships). Patch releases that are not listed are matched by their first two numbers.
JETPACK: dict[str, tuple[str, str]] = {
    "35.6.4": ("5.1.6", "8.5.2"),
    "36.3": ("6.0", "8.6.2"),
    "36.4.3": ("6.2", "10.3.0"),
    "36.4.4": ("6.2.1", "10.3.0"),
    "36.5": ("6.2.2", "10.3.0"),
    "38.2": ("7.0", "10.13.3"),
    "38.4": ("7.1", "10.13.3"),
    "39.2": ("7.2", "10.16.2"),
}

# Chip named by the device tree -> (family, compute capability as nvcc writes it).
CHIPS: dict[str, tuple[str, str]] = {"tegra194": ("Xavier", "72"), "tegra234": ("Orin", "87"), "tegra264": ("Thor", "110")}


@dataclass(frozen=True)
class Jetson:
    """One module.

    model: as the device tree names it. family, compute_capability: "Orin", "87"; "" where the device tree names no known chip.
    l4t: such as "36.4.3". jetpack, tensorrt: what that release belongs to and ships, "" when the release is not in the table.
    """

    model: str
    family: str
    compute_capability: str
    l4t: str
    jetpack: str
    tensorrt: str

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def read_jetson(root: Path = Path("/")) -> Jetson | None:
    """The Jetson whose files lie below `root`, None when it is none."""
    release = _text(root / "etc/nv_tegra_release")
    compatible = _text(root / "proc/device-tree/compatible")
    chip = next((name for name in CHIPS if name in compatible), "")
    model = _text(root / "proc/device-tree/model").strip()
    if not release and not chip:
        return None
    family, capability = CHIPS.get(chip, ("", "")) if chip else _from_model(model)
    l4t = parse_l4t(release)
    jetpack, tensorrt = jetpack_of(l4t)
    return Jetson(model or "unknown", family, capability, l4t, jetpack, tensorrt)


def parse_l4t(text: str) -> str:
    """The release in `# R36 (release), REVISION: 4.3, GCID: ...`, here "36.4.3", or ""."""
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else ""


def jetpack_of(l4t: str) -> tuple[str, str]:
    """(JetPack, TensorRT) of an L4T release; ("", "") when the table does not have it."""
    numbers = l4t.split(".")
    candidates = [".".join(numbers[:length]) for length in range(len(numbers), 1, -1)]
    return next((JETPACK[name] for name in candidates if name in JETPACK), ("", ""))


def power_state(root: Path = Path("/")) -> dict[str, dict[str, str]]:
    """What decides the clocks: nvpmodel -q, jetson_clocks --show, one line of tegrastats, and nvidia-smi's clocks.

    Returns:
        name -> {"value": text} or {"missing": reason}; always all names, so that a report shows what was not recorded.
    """
    query = "name,pstate,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    asked = {
        "nvpmodel": output_of(find_program("nvpmodel", root), ["-q"]),
        "jetson_clocks": output_of(find_program("jetson_clocks", root), ["--show"]),
        "tegrastats": first_line(find_program("tegrastats", root), ["--interval", "200"]),
        "nvidia_smi": output_of(find_program("nvidia-smi", root), [f"--query-gpu={query}", "--format=csv,noheader"]),
        "nv_tegra_release": (_text(root / "etc/nv_tegra_release").strip(), "no /etc/nv_tegra_release"),
    }
    return {name: {"value": value} if value else {"missing": reason} for name, (value, reason) in asked.items()}


def power_mode(state: dict[str, dict[str, str]]) -> str:
    """The nvpmodel mode's name, such as "MAXN", or ""."""
    found = re.search(r"NV Power Mode:\s*(\S+)", state.get("nvpmodel", {}).get("value", ""))
    return found[1] if found else ""


def _from_model(model: str) -> tuple[str, str]:
    """Family by the model's name, for kernels whose device tree names no chip."""
    return next(((family, capability) for family, capability in CHIPS.values() if family in model), ("", ""))


def _text(path: Path) -> str:
    """A file's text without the NULs of device-tree strings, "" when it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace").replace("\0", "\n").strip()
    except OSError:
        return ""
