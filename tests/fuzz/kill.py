"""kill -9 at random moments: export, build-engine and calibrate in turn. Nothing is lost, no builder stays, no temporary file after the next run.

    python tests/fuzz/kill.py --times 60 [--store]

The killed commands replace what is there (--force), so that each moment of a replacement is hit; what is there must be whole, the old
or the new one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import corpus  # noqa: E402
from run import table  # noqa: E402

FINDINGS = ("bundle lost", "recipe lost", "builder left", "temporary left", "next run failed")


def commands(root: Path) -> list[list[str]]:
    """The three commands, each replacing its output."""
    weights = ["--weights", str(root / "in" / "weights.safetensors")]
    return [
        ["export", "-r", str(root / "in" / "recipe.yaml"), *weights, "-o", str(root / "in" / "bundle"), "--force"],
        ["build-engine", str(root / "in" / "bundle"), "--target", "onnxruntime-cpu", "--force"],
        [
            "calibrate", str(root / "in" / "recipe.yaml"), *weights, "--data", str(root / "in" / "images.npz"), "--mean-tokens", "6",
            "-o", str(root / "in" / "calibrated.yaml"), "--force",
        ],
    ]  # fmt: skip


def started(arguments: list[str], root: Path, errors: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """The command in a session of its own, marked in its environment so that what it leaves can be found."""
    return subprocess.Popen(
        [sys.executable, "-m", "vitprune", *arguments, "-q"], stdout=subprocess.DEVNULL, stderr=errors,
        start_new_session=True, env={**os.environ, "VITPRUNE_FUZZ": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def left(root: Path) -> list[int]:
    """Processes that the killed command left: they carry its mark."""
    mark, found = f"VITPRUNE_FUZZ={root}".encode(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if mark in Path(f"/proc/{entry}/environ").read_bytes() and " Z " not in Path(f"/proc/{entry}/stat").read_text():
                    found.append(int(entry))
            except OSError:
                continue
    return found


def whole(root: Path) -> list[str]:
    """What of the outputs is lost."""
    from vitprune.bundle import open_bundle
    from vitprune.errors import VitpruneError
    from vitprune.recipe import Recipe

    lost = []
    try:
        open_bundle(root / "in" / "bundle").samples()
    except VitpruneError:
        lost.append("bundle lost")
    try:
        Recipe.load(str(root / "in" / "calibrated.yaml"))
    except VitpruneError:
        lost.append("recipe lost")
    return lost


def temporaries(root: Path) -> list[Path]:
    """Files and folders under way."""
    return [path for path in (root / "in").rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")]


def run(times: int, seed: int = 0, only: int | None = None) -> dict[str, Any]:
    """Kill `times` times; returns the counts of findings."""
    rng, root = random.Random(seed), Path(tempfile.mkdtemp(prefix="vitprune-kill-"))
    counts, running = dict.fromkeys(FINDINGS, 0), 0
    said: list[str] = []
    try:
        _corpus(root / "in")
        lines = commands(root)
        seconds = []
        for line in lines:
            began = time.monotonic()
            if started(line, root).wait():
                raise RuntimeError(f"{line[0]} does not work unharmed")
            seconds.append(time.monotonic() - began)
        for number in range(times):
            which = number % 3 if only is None else only
            process = started(lines[which], root)
            time.sleep(rng.uniform(0.1, 1.05) * seconds[which])
            running += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            for name in whole(root):
                counts[name] += 1
            until = time.monotonic() + 5
            while left(root) and time.monotonic() < until:
                time.sleep(0.05)
            counts["builder left"] += bool(left(root))
            if number % 10 == 9 or number == times - 1:  # the next runs sweep
                for line in lines:
                    after = started(line, root, subprocess.PIPE)
                    text = after.communicate()[1].decode(errors="replace")
                    counts["next run failed"] += after.returncode != 0
                    said += [f"{line[0]}: {after.returncode}: {text[-600:]}"] if after.returncode else []
                counts["temporary left"] += bool(temporaries(root))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {"times": times, "seed": seed, "killed_while_running": running, "findings": counts, "said": said}


def _corpus(place: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            corpus.make(place)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the inputs could not be made")


def main() -> None:
    """Run, store, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", action="store_true", help="write kills.json and RESULTS.md")
    options = parser.parse_args()
    result = run(options.times, options.seed)
    print(json.dumps(result, indent=2))
    if options.store:
        (HERE / "kills.json").write_text(json.dumps(result, indent=2) + "\n")
        if (HERE / "results.json").exists():
            (HERE / "RESULTS.md").write_text(table(json.loads((HERE / "results.json").read_text()), result))
    sys.exit(bool(sum(result["findings"].values())))


if __name__ == "__main__":
    main()
