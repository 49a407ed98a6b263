"""The sections of RESULTS.md on half types, int8 and fp8, from the JSON of `precision.py`, `types_memory.py` and `flips.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Table = Callable[[list[str], list[list[str]]], str]

HEAD = [
    "method", "type", "images", "top-1 %", "graph", "CPU memory", "speed", "drop, points", "0.1 points", "agreement %", "images flipped per site",
    "flips legal/illegal",
]  # fmt: skip


def sections(folder: Path, table: Table) -> list[str]:
    """Sections of what is stored in a folder; nothing of what is not."""
    half, flips, memory = (_read(folder / name) for name in ("precision.json", "flips.json", "types_memory.json"))
    found = []
    if half:
        found += [
            "## Half types, int8 and fp8",
            "By `precision.py`: exported graphs on ONNX Runtime's CPU, FP32 arithmetic with every value rounded where the graph says, int8 and fp8 "
            "emulated so too. So no speed is given but fp32's own, and memory (`types_memory.py`: what a session and 50 images add to a process at "
            "its peak, median of three processes) is not saved either; files are smaller. Drop and agreement are against fp32 of the same method on "
            "the same images, with paired and Wilson 95 % intervals; images flipped: whose decisions first differ at each site. Flips legal/illegal: "
            "against the PyTorch reference in the same type; the largest in units of the margin, and which share of the decisions lies beyond the "
            "margin, so that it could have failed.",
            table(HEAD, rows(half, memory, flips)),
        ]
    if memory:
        found += [
            "## Memory and files by type",
            "By `types_memory.py`, on ONNX Runtime's CPU, where all types but fp32 are emulated: MiB of a session and 50 images at the peak, and of the "
            "graph's file. A dash: export refused it on the images that it was calibrated on (VP330), or it was not run.",
            table(
                ["method", *KINDS],
                [[method, *(memory_cell(modes.get(kind)) for kind in KINDS)] for method, modes in memory.items()],
            ),
        ]
    if flips:
        found += [
            "## Decisions against the reference, on 1,000 images",
            f"By `flips.py`: graph on ONNX Runtime against the PyTorch reference in the same type; each image's largest difference of a logit, where its "
            f"decisions agree, in percent of the largest logit. {verdict_of(flips)}",
            table(
                [
                    "method",
                    "type",
                    "images",
                    "flips legal",
                    "illegal",
                    "largest, of the margin",
                    "decisions",
                    "could have failed",
                    "logits apart: median, p99, largest (limit), %",
                ],
                [flip_row(method, mode, one) for method, modes in flips.items() for mode, one in modes.items()],
            ),
        ]
    return found


KINDS = ("fp32", "fp16", "bf16", "int8", "fp8")


def memory_cell(one: dict[str, Any] | None) -> str:
    """MiB in memory and of the file."""
    return f"{one['mib']:.1f}, {one['file_bytes'] / 2**20:.2f}" if one else "–"


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def rows(stored: dict[str, Any], memory: dict[str, Any], flips_of: dict[str, Any]) -> list[list[str]]:
    """Types against fp32 on the same images; flips against the reference of the later run, `flips.py`, where there is one."""
    found = []
    for method, one_method in stored.items():
        for mode, one in one_method["modes"].items():
            agreement, drop = one["agreement"], one["drop"]
            flips = ", ".join(str(site["images"]) for site in one["sites"])
            took = memory.get(method, {}).get(mode)
            checked = flips_of.get(method, {}).get(mode) or one.get("reference")
            found.append([
                method, mode, f"{one['images']:,}", f"{one['top1']:.2f}", f"{one['bytes'] / 2**20:.2f} MiB",
                f"{took['mib']:.1f} MiB" if took else "–", "real" if mode == "fp32" else "emulated",
                *(["–"] * 5 if mode == "fp32" else [
                    f"{drop[0]:+.2f} [{drop[1]:+.2f}, {drop[2]:+.2f}]", gate(mode, drop),
                    f"{agreement[0]:.2f} [{agreement[1]:.2f}, {agreement[2]:.2f}]", flips, flipped(checked),
                ]),
            ])  # fmt: skip
    return found


def flipped(checked: dict[str, Any] | None) -> str:
    """Flips of a run against the reference, where they were looked for."""
    if not checked:
        return "–"
    text = f"{checked['legal']}/{checked['illegal']} on {checked['images']:,}"
    return f"{text} ({checked['largest']:.2f}; {share(checked)})" if "largest" in checked else text


def share(checked: dict[str, Any]) -> str:
    """Share of the decisions that could have failed."""
    return f"{100 * checked['could_fail'] / checked['decisions']:.1f} %" if checked["decisions"] else "–"


def flip_row(method: str, mode: str, one: dict[str, Any]) -> list[str]:
    """One line of the table of flips."""
    counts = [f"{one[key]:,}" for key in ("images", "legal", "illegal")]
    return [method, mode, *counts, f"{one['largest']:.2f}", f"{one['decisions']:,}", share(one), apart(one.get("logits"))]


def apart(logits: dict[str, float] | None) -> str:
    """How far logits lie apart where decisions agree, in percent of the largest logit, with the tolerance."""
    if not logits or "max" not in logits:
        return "–"
    parts = ", ".join(f"{100 * logits[name]:.2g}" for name in ("median", "p99", "max"))
    return f"{parts} ({100 * logits['limit'] / logits['largest']:.2g})"


def verdict_of(flips: dict[str, Any]) -> str:
    """What the table says as a whole."""
    wrong = [f"{method} {mode}" for method, modes in flips.items() for mode, one in modes.items() if one["illegal"]]
    idle = [f"{method} {mode}" for method, modes in flips.items() for mode, one in modes.items() if not one["could_fail"]]
    said = f"Illegal flips: {', '.join(wrong)}." if wrong else f"No flip is illegal, of {len(flips)} methods."
    return said + (f" No decision could have failed, so that nothing is shown, for {', '.join(idle)}." if idle else "")


def gate(mode: str, drop: list[float]) -> str:
    """Against 0.1 points, which int8 and fp8 need not meet: against 0.5, and that is said."""
    return f"{verdict(drop, 0.5)} (of 0.5)" if mode in ("int8", "fp8") else verdict(drop, 0.1)


def verdict(drop: list[float], limit: float) -> str:
    """Whether a drop in points is below a limit, by its interval."""
    return "below" if drop[2] < limit else "above" if drop[1] > limit else "undecided"
