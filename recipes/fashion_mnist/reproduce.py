"""Everything published about one method on Fashion-MNIST, by one command: train, evaluate, sweep over MAC budgets, report.

python recipes/fashion_mnist/reproduce.py asvit                # all steps; an interrupted training goes on
python recipes/fashion_mnist/reproduce.py dense                # evaluates the shipped dense model (trained by train.py)
python recipes/fashion_mnist/reproduce.py ats --runs DIR --ship

Trainings are in RUNS/METHOD; one that is finished is not repeated. On one CPU core they take 6 minutes (pomt) to an hour (dvt).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
METHODS = sorted(path.stem for path in (HERE / "training").glob("*.yaml"))
NEEDS_TRAINING = ("avit", "dvt", "dynamicvit")
ADAPTIVE = ("ats", "ats_merge", "asvit", "avit", "dvt", "tome_threshold")  # also at what 0.70 x the dense MACs allow
# `calibrate --schedule` of a method that is measured on its best one; and shares of a method whose one schedule gets no lower.
SCHEDULES = {"tome_falling": "falling"}
SHARES = {"tome": (0.8, 0.65, 0.5)}
# The papers' ablations: method -> name and key, both with trained weights and off the shelf.
VARIANTS = {"ats": ("plain_scores", "prune.value_norm=false"), "asvit": ("plain_heads", "prune.head_weight=false")}


def python(*arguments: object) -> None:
    """One step in a process of its own; a failed one ends the program with its exit code."""
    done = subprocess.run([sys.executable, *map(str, arguments)], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def train(method: str, out: Path) -> None:
    """Train unless that is done; the exits of a cascade are then solved on training images for 0.6 x the dense MACs."""
    if not (out / "train.json").is_file():
        more = ["--resume"] if (out / "checkpoint.pt").is_file() else []
        recipe = HERE / "training" / f"{method}.yaml"
        python("-m", "vitprune", "finetune", "-r", recipe, "--data", DATA, "-o", out, "--checkpoint-steps", 100, *more)
    if method == "dvt":
        budget = ["--budget-macs", 0.6, "--samples", 5000]
        python("-m", "vitprune", "calibrate", out / "recipe.yaml", "--data", DATA, *budget, "-o", out / "recipe.yaml", "--force")


def evaluate(method: str, run: Path) -> None:
    """Latency is measured for trained runs at their own setting, accuracy and MACs for all."""
    sources = {method: run / "recipe.yaml"}
    if method not in NEEDS_TRAINING:
        sources[f"{method}-untrained"] = HERE / "training" / f"{method}.yaml"
    for name, recipe in sources.items():
        python(HERE / "results.py", recipe, "--name", name, *([] if name == method else ["--rounds", 0]))
        more = ["--samples", 5000] if method == "dvt" else []  # accuracy is part of what is solved there
        more += ["--schedule", SCHEDULES[method]] if method in SCHEDULES else []
        if run / "recipe.yaml" == recipe and method in ADAPTIVE:
            more += ["--shares", 0.8, 0.69, 0.65, 0.5, 0.4]
        elif method in SHARES:
            more += ["--shares", *SHARES[method]]
        python(HERE / "sweep.py", recipe, "--name", name, "--rounds", 0, *more)
        if method in VARIANTS:
            label, key = VARIANTS[method]
            python(
                HERE / "sweep.py",
                recipe,
                "--name",
                name.replace(method, f"{method}-{label}"),
                "--set",
                key,
                "--shares",
                0.65,
                "--rounds",
                0,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("method", choices=["dense", *METHODS])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--ship", action="store_true", help="also put weights and recipe where make demo finds them")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.method == "dense":
        python(HERE / "results.py", "--dense")
    else:
        train(args.method, args.runs / args.method)
        evaluate(args.method, args.runs / args.method)
        if args.ship:
            name = "ats_finetuned" if args.method == "ats" else args.method  # ats.yaml is ATS off the shelf
            python(HERE / "ship.py", args.runs / args.method, name)
    python(HERE / "report.py")


if __name__ == "__main__":
    main()
