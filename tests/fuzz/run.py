"""Mutated inputs against the command line: python tests/fuzz/run.py --cases 3000. Same seed, same case.

Every case runs in a fork, in a folder of its own. What counts as a finding: a traceback, VP198, a signal, a hang over 60 s, more than
4 GB, exit 0 on an input that is known to be corrupt, a write outside, code that ran. Counts go to results.json, the table to RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import corpus  # noqa: E402
import mutations  # noqa: E402
import worker  # noqa: E402

FINDINGS = ("traceback", "VP198", "signal", "hang", "memory", "exit 0 on corruption", "write outside", "code executed")


def findings(case: mutations.Case, outcome: worker.Outcome, place: Path, before: dict[str, int]) -> list[str]:
    """What is wrong with an outcome."""
    wrong = {
        "traceback": outcome.traceback,
        "VP198": outcome.code == "VP198" or "error VP198" in outcome.said,
        "signal": isinstance(outcome.exit, int) and outcome.exit not in (0, 1, 2),
        "hang": outcome.exit == "hang",
        "memory": outcome.memory > worker.MEMORY,
        "exit 0 on corruption": case.corrupt and outcome.exit == 0 and "--exit-zero" not in case.arguments,
        "write outside": sorted(os.listdir(place / "outside")) != ["precious.txt"]
        or (place / "outside" / "precious.txt").read_text() != "precious"
        or snapshot(place.parent) != before,
        "code executed": mutations.canary(place / "in").exists() or (place / "work" / "CANARY").exists(),
    }
    return [name for name in FINDINGS if wrong[name]]


def snapshot(root: Path) -> dict[str, int]:
    """Names and times of what lies around the case's folder and is not its own."""
    kept = {str(path): path.stat().st_mtime_ns for path in (root / "corpus").rglob("*") if path.is_file()}
    return kept | {name: 0 for name in os.listdir(root) if name not in ("case",)}


def run(seeds: Sequence[int], log: Any = None, seconds: float = 1e9, record: Path | None = None) -> dict[str, Any]:
    """Run the cases of the seeds, or as many as the seconds allow; returns the counts.

    Args:
        log: a stream for findings. record: a file of JSON lines, one a case; cases that stand in it are not run again, so that a run that
            was stopped is continued.
    """
    root = Path(tempfile.mkdtemp(prefix="vitprune-fuzz-"))
    began, entries = time.monotonic(), _recorded(record, seeds)
    done = {entry["seed"] for entry in entries}
    try:
        worker.warm()
        _make_corpus(root / "corpus")
        before = snapshot(root)
        for seed in seeds:
            if time.monotonic() - began > seconds:
                break
            if seed in done:
                continue
            place = root / "case"
            folder = corpus.fresh(root / "corpus", place)
            case = mutations.case(seed, folder)
            outcome = worker.run(case.arguments, place)
            wrong = findings(case, outcome, place, before)
            entry = {"seed": seed, "kind": case.kind, "what": case.what, "exit": str(outcome.exit), "findings": wrong}
            entries.append(entry)
            for stream, wanted in ((log, wrong), (record, True)):
                if stream is not None and wanted:
                    _append(stream, entry | ({"arguments": case.arguments, "outcome": worker.document(outcome)} if wrong else {}))
            shutil.rmtree(place)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return counts_of(entries, round(time.monotonic() - began))


def _recorded(record: Path | None, seeds: Sequence[int]) -> list[dict[str, Any]]:
    if record is None or not record.exists():
        return []
    entries = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if entry["seed"] in seeds]


def _append(place: Any, entry: dict[str, Any]) -> None:
    if isinstance(place, Path):
        with place.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
    else:
        place.write(json.dumps(entry) + "\n")
        place.flush()


def counts_of(entries: list[dict[str, Any]], seconds: int) -> dict[str, Any]:
    """The counts of cases."""
    kinds, exits = Counter(entry["kind"] for entry in entries), Counter(entry["exit"] for entry in entries)
    counts = Counter(name for entry in entries for name in entry["findings"])
    return {
        "cases": len(entries), "first_seed": min((entry["seed"] for entry in entries), default=0), "seconds": seconds,
        "kinds": dict(sorted(kinds.items())), "exits": dict(sorted(exits.items())), "findings": {name: counts[name] for name in FINDINGS},
        "seeds": {name: [entry["seed"] for entry in entries if name in entry["findings"]] for name in FINDINGS},
    }  # fmt: skip


def table(result: dict[str, Any], killed: dict[str, Any] | None) -> str:
    """RESULTS.md."""
    lines = [
        "# Mutated inputs and killed processes", "", "Made by `python tests/fuzz/run.py --cases N` and `python tests/fuzz/kill.py --times 60`.", "",
        f"{result['cases']} cases from seed {result['first_seed']}: "
        + ", ".join(f"{count} {kind}" for kind, count in result["kinds"].items()) + ".", "",
        "| finding | cases |", "| --- | ---: |", *(f"| {name} | {count} |" for name, count in result["findings"].items()), "",
        "Exit codes: " + ", ".join(f"{code}: {count}" for code, count in result["exits"].items()) + ".", "",
    ]  # fmt: skip
    if killed is not None:
        lines += [f"kill -9 at random moments, {killed['times']} times:", "", "| finding | times |", "| --- | ---: |"]
        lines += [*(f"| {name} | {count} |" for name, count in killed["findings"].items()), ""]
    return "\n".join(lines)


def main() -> None:
    """Run, store, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", help="these alone, to see a finding again")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--record", type=Path, help="a line a case; cases that stand in it are not run again")
    parser.add_argument("--log", type=Path, help="findings as JSON lines")
    parser.add_argument("--store", action="store_true", help="write results.json and RESULTS.md")
    options = parser.parse_args()
    with open(options.log or os.devnull, "a", encoding="utf-8") as log:
        result = run(options.seeds or range(options.first, options.first + options.cases), log, options.seconds, options.record)
    print(json.dumps(result, indent=2))
    if options.store:
        (HERE / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    stored = HERE / "kills.json"
    killed = json.loads(stored.read_text()) if stored.exists() else None
    if options.store:
        (HERE / "RESULTS.md").write_text(table(result, killed))
    sys.exit(bool(sum(result["findings"].values())))


def _make_corpus(place: Path) -> None:
    """In a fork, so that this process has no runtime started when it forks again."""
    child = os.fork()
    if child == 0:
        try:
            corpus.make(place)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the inputs could not be made")


if __name__ == "__main__":
    main()
