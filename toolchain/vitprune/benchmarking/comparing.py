"""One measurement against an earlier one: a gate that sees a slowdown and not the day's mood.

Compared are ratios to the dense model that was timed in the same rounds, never absolute times: a busier machine slows both. It does not slow
them alike, though: the dense model's own times tell whether the machine was in the same state, and by how much a ratio may have moved with it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitprune.benchmarking.suite import KIND, SCHEMA
from vitprune.errors import LoadError
from vitprune.support import files, json_text

TOLERANCE = 0.05
# With a neighbour that fills the shared cache the shipped model's ratio moved by 0.63 of what the dense model's time moved by (both as
# logarithms, correlation 0.93, 13 runs of the same bundle).
MOVES_WITH = 2 / 3


@dataclass(frozen=True)
class Change:
    """One bundle and batch: new ratio over old ratio with its interval at 95 %, and what that means.

    verdict: "regression": slower for sure, and nearer to the tolerance than to nothing. "same": a slowdown of the tolerance is excluded.
    "improvement": the same, and faster for sure. "undecided": neither.
    dense_change: the dense model's own time over that of the run before, where one processor and runtime measured both; else None. Part of
    the interval is what the ratio may have moved by with it.
    more_rounds: of an undecided change, about how many more of each run would decide it, were the change what it seems to be; None where
    no number would.
    """

    bundle: str
    batch: int
    before: float
    after: float
    change: float
    low: float
    high: float
    verdict: str
    dense_change: float | None = None
    more_rounds: int | None = None

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def compare(before: dict[str, Any], after: dict[str, Any], tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Compare two documents of `suite.benchmark`.

    Args:
        before, after: the documents. tolerance: the slowdown that must not get through, as a share.

    Returns:
        status ("passed", "failed", "undecided"), exit_code, tolerance, changes, and notes on what differs between the runs.

    Raises:
        LoadError: VP654 they cannot be compared.
    """
    pairs = _pairs(before, after)
    rounds = max(before["rounds"], after["rounds"])
    alike = not {"processor", "runtime"} & _differences(before, after).keys()
    changes = [_change(old, new, tolerance, rounds, _dense_change(old, new) if alike else None) for old, new in pairs]
    verdicts = {change.verdict for change in changes}
    status = "failed" if "regression" in verdicts else "undecided" if "undecided" in verdicts else "passed"
    return {
        "status": status, "exit_code": 0 if status == "passed" else 1, "tolerance": tolerance,
        "changes": [change.document() for change in changes], "notes": _notes(before, after),
    }  # fmt: skip


def _dense_change(old: dict[str, Any], new: dict[str, Any]) -> float | None:
    """The dense model's median time over the earlier one's; None where ratios are to something else."""
    if old["against"] != "dense" or not old.get("dense") or not new.get("dense"):
        return None
    return float(new["dense"]["median_ms"] / old["dense"]["median_ms"])


def _change(old: dict[str, Any], new: dict[str, Any], tolerance: float, rounds: int, dense_change: float | None = None) -> Change:
    """Intervals of both ratios and what the machine's state may do, combined as logarithms, where a ratio of ratios is a difference."""
    change = new["ratio"] / old["ratio"]
    moved = MOVES_WITH * abs(math.log(dense_change or 1))
    below = math.hypot(math.log(new["ratio"] / new["ratio_interval"][0]), math.log(old["ratio_interval"][1] / old["ratio"]))
    above = math.hypot(math.log(new["ratio_interval"][1] / new["ratio"]), math.log(old["ratio"] / old["ratio_interval"][0]))
    low, high = change * math.exp(-math.hypot(below, moved)), change * math.exp(math.hypot(above, moved))
    verdict = _verdict(change, low, high, tolerance)
    more = _more(change, below, above, moved, tolerance, rounds) if verdict == "undecided" else None
    return Change(new["bundle"], new["batch"], old["ratio"], new["ratio"], change, low, high, verdict, dense_change, more)


def _more(change: float, below: float, above: float, moved: float, tolerance: float, rounds: int) -> int | None:
    """Rounds until the interval leaves 1 below it or the tolerance above it: its part from the rounds narrows with their root, `moved` does not."""
    slower = change > 1 + tolerance / 2
    reach, away = (below, math.log(change)) if slower else (above, math.log((1 + tolerance) / change))
    return None if away <= moved or reach <= 0 else max(1, math.ceil(rounds * (reach**2 / (away**2 - moved**2) - 1)))


def _verdict(change: float, low: float, high: float, tolerance: float) -> str:
    if low > 1 and change > 1 + tolerance / 2:
        return "regression"
    if high >= 1 + tolerance:
        return "undecided"
    return "improvement" if high < 1 else "same"


def _pairs(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Entries of the same bundle and batch; every entry of `before` must be there again.

    Raises:
        LoadError: VP654.
    """
    for key in ("backend", "target", "threads", "clock"):
        one, other = before["runtime"][key], after["runtime"][key]
        if one != other:
            raise _unlike(f"{key} is {one} in one and {other} in the other", "measure both the same way")
    old, new = ({(entry["bundle"], entry["batch"]): entry for entry in document["results"]} for document in (before, after))
    if absent := [key for key in old if key not in new]:
        raise _unlike(f"'{absent[0][0]}' at batch {absent[0][1]} was not measured again", "measure the same bundles and batches")
    for place in old:
        if old[place]["against"] != new[place]["against"]:
            raise _unlike("their ratios are to different baselines", "measure both with or both without --no-dense")
    return [(old[place], new[place]) for place in old]


def _differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[str, str]]:
    pairs = {
        "processor": (before["machine"]["processor"], after["machine"]["processor"]),
        "runtime": (before["runtime"]["version"], after["runtime"]["version"]),
        "vitprune": (before["tool_version"], after["tool_version"]),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _notes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [f"{name}: {one} before, {other} after" for name, (one, other) in _differences(before, after).items()]


def read(path: Path) -> dict[str, Any]:
    """A document that `vitprune benchmark` wrote.

    Raises:
        LoadError: VP653 it is none.
    """
    try:
        document = json_text.parse(files.read_text(path))
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise ValueError("it is no result of vitprune benchmark")
        if document.get("schema_version") != SCHEMA:
            raise ValueError(f"it has schema {document.get('schema_version')}, this vitprune reads {SCHEMA}")
        _require_numbers(document)
        return document
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        cause = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise LoadError(
            653, f"'{path}' cannot be compared", cause=cause, next_step="vitprune benchmark BUNDLE -o FILE.json"
        ) from error


def _require_numbers(document: dict[str, Any]) -> None:
    for key in ("backend", "target", "threads", "clock", "version"):
        document["runtime"][key]
    document["machine"]["processor"], document["tool_version"]
    if not isinstance(document["rounds"], int) or document["rounds"] < 1:
        raise ValueError("it has no rounds")
    if not document["results"]:
        raise ValueError("it holds no results")
    for entry in document["results"]:
        low, high = entry["ratio_interval"]
        values = [entry["ratio"], low, high]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) and value > 0 for value in values) or not low <= high:
            raise ValueError("a ratio or its interval is no positive number")
        entry["bundle"], entry["batch"], entry["against"]


def _unlike(cause: str, next_step: str) -> LoadError:
    return LoadError(654, "the two measurements cannot be compared", cause=cause, next_step=next_step)
