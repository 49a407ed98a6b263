"""One run at several shares of the dense MACs: `vitprune calibrate` on training images, then `results.py` on the test images.

python recipes/fashion_mnist/sweep.py RUN/recipe.yaml --name ats            # stores ats-80, ats-65, ats-50 and ats-40
python recipes/fashion_mnist/sweep.py training/ats.yaml --name ats-untrained
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
SHARES = (0.8, 0.65, 0.5, 0.4)


def swept(recipe: Path, name: str, share: float, data: Path, samples: int, keys: list[str], more: list[str],
    schedule: str | None = None,
) -> None:  # fmt: skip
    label = f"{100 * share:.0f}"
    trained = (recipe.parent / "train.json").is_file()  # then the weights lie beside the recipe, and so must the new one
    with tempfile.TemporaryDirectory() as place:
        made = (recipe.parent if trained else Path(place)) / f"{name}-{label}.yaml"
        calibrate = ["-m", "vitprune", "calibrate", str(recipe), "--data", str(data), "--samples", str(samples)]
        calibrate += [] if schedule is None else ["--schedule", schedule]
        calibrate += [word for key in keys for word in ("--set", key)]
        subprocess.run(
            [sys.executable, *calibrate, "--budget-macs", str(share), "-o", str(made), "--force", "--quiet"], check=True
        )
        subprocess.run(
            [sys.executable, str(HERE / "results.py"), str(made), "--name", f"{name}-{label}", "--data", str(data), *more],
            check=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--samples", type=int, default=512, help="training images to calibrate on")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--set", action="append", default=[], help="key.path=value of the recipe")
    parser.add_argument("--schedule", help="as for calibrate: how tome spreads its merges")
    args, more = parser.parse_known_args()
    failed = []
    for share in args.shares:
        try:
            swept(args.recipe, args.name, share, args.data, args.samples, args.set, more, args.schedule)
        except subprocess.CalledProcessError as error:
            failed.append(f"{args.name} at {share}: exit {error.returncode}")
    print("\n".join(failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
