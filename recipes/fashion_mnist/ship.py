"""Put a trained run where `make demo METHOD=NAME` finds it: weights and recipe beside this file.

python recipes/fashion_mnist/ship.py RUN NAME        # RUN is a folder made by vitprune finetune
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import yaml

from vitprune.yaml_text import parse

HERE = Path(__file__).parent
LIMIT = 5 << 20  # bytes of a weights file that ships


def ship(run: Path, name: str) -> list[Path]:
    plain = parse((run / "recipe.yaml").read_text())
    written = []
    for section, key, suffix in (("model", "weights", ""), ("prune", "predictor", "_predictor")):
        file = plain[section].get(key)
        if file is None:
            continue
        source, target = run / Path(file).name, HERE / f"{name}{suffix}.safetensors"
        if source.stat().st_size > LIMIT:
            raise SystemExit(f"{source} has {source.stat().st_size} bytes, shipped weights have at most {LIMIT}")
        shutil.copyfile(source, target)
        plain[section][key] = f"shipped:fashion_mnist/{target.name}"
        written.append(target)
    recipe = HERE / f"{name}.yaml"
    head = f"# {plain['prune']['method']}, trained on Fashion-MNIST with recipes/fashion_mnist/training; weights are shipped.\n"
    recipe.write_text(head + yaml.safe_dump(plain, sort_keys=False))
    return [*written, recipe]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    for path in ship(args.run, args.name):
        print(path)
