"""`vitprune tune` at half of the dense MACs on the shipped model, beside every shipped recipe that is no cascade; stores tune.json.

python recipes/fashion_mnist/tuned.py --work DIR        # some 30 minutes on one core; what is finished in DIR is not repeated

Three searches: one of 100 trials; the same one killed (SIGKILL) after trial 40 and gone on with, which must end with the same front;
and one of 24 trials shared by two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
SHARE, TRIALS, SAMPLES, KILLED, SHARED = 0.5, 100, 512, 40, 24
CASCADES = ("dvt",)


def recipes() -> list[Path]:
    """The shipped recipes that can be searched beside the model."""
    return [path for path in sorted(HERE.glob("*.yaml")) if path.stem not in CASCADES]


def command(output: Path, trials: int, *more: object) -> list[str]:
    words = [sys.executable, "-m", "vitprune", "tune", HERE / "ats.yaml", "--data", DATA, "--budget-macs", SHARE, "-o", output]
    words += ["--samples", SAMPLES, "--trials", trials, *(word for path in recipes() for word in ("-r", path)), *more]
    return [str(word) for word in words]


def done_in(database: Path) -> int:
    """Trials of a study that are finished; 0 while it cannot be read."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as there:
            return int(there.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')").fetchone()[0])
    except sqlite3.Error:
        return 0


def killed_and_resumed(output: Path) -> int:
    """Kill a search once `KILLED` trials are finished, then let it end; returns the number it was killed at (0: it had ended before)."""
    at = 0
    if not (output / "tune.json").is_file() and done_in(output / "study.db") < KILLED:
        process = subprocess.Popen(command(output, TRIALS))
        while process.poll() is None and done_in(output / "study.db") < KILLED:
            time.sleep(0.2)
        process.kill()
        process.wait()
        at = done_in(output / "study.db")
        output.with_suffix(".at").write_text(str(at))  # beside the folder: a search refuses a file that is not its own
    subprocess.run(command(output, TRIALS), check=True)
    return at or int(output.with_suffix(".at").read_text())


def front_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The front without the numbers of trials: one that was killed has a number."""
    return [{key: value for key, value in one.items() if key != "number"} for one in document["front"]]


def summary(whole: dict[str, Any], resumed: dict[str, Any], killed_at: int, shared: list[dict[str, Any]]) -> dict[str, Any]:
    """What is stored, from the documents (tune.json) of the searches.

    rivals: recipes as they are and calibrated settings within the budget, best first.
    """
    inside = [one for one in whole["outcomes"] if one["spent"] <= SHARE and one["kind"] in ("recipe", "calibrated")]
    inside.sort(key=lambda one: (-one["agreement"], one["error"]))
    return {
        "share": SHARE, "trials": whole["trials"], "images": whole["images"], "evaluated": whole["evaluated"],
        "chosen": whole["chosen"], "why": whole["why"], "rivals": inside, "front": whole["front"], "killed_at": killed_at,
        "same_front_after_kill": front_of(whole) == front_of(resumed),
        "two_processes": {"trials": SHARED, "same_outcomes": shared[0]["outcomes"] == shared[1]["outcomes"], "evaluated": shared[0]["evaluated"]},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("tune-runs"))
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    subprocess.run(command(work / "whole", TRIALS), check=True)
    at = killed_and_resumed(work / "killed")
    outputs = [work / "first", work / "second"]
    storage = ["--storage", f"sqlite:///{(work / 'shared.db').resolve()}"]
    both = [subprocess.Popen(command(output, SHARED, *storage)) for output in outputs]
    if any(one.wait() for one in both):
        raise SystemExit("a search on the shared study failed")
    for output in outputs:  # the slower one knows all; the faster one is asked again
        subprocess.run(command(output, SHARED, *storage), check=True)
    whole, resumed, *shared = (
        json.loads((folder / "tune.json").read_text()) for folder in (work / "whole", work / "killed", *outputs)
    )
    found = summary(whole, resumed, at, shared)
    (HERE / "tune.json").write_text(json.dumps(found, indent=1) + "\n")
    print(HERE / "tune.json")


if __name__ == "__main__":
    main()
