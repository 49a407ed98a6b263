"""Put a trained run where `make demo METHOD=NAME` finds it: weights and recipe beside this file.

python recipes/fashion_mnist/ship.py RUN NAME        # RUN is a folder made by vitprune finetune
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import yaml
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from vitprune.support.yaml_text import parse

HERE = Path(__file__).parent
LIMIT = 5_000_000  # bytes of a weights file that ships


def copy(source: Path, name: str) -> list[Path]:
    """One file, or shards of at most LIMIT bytes with their index last."""
    for old in [*HERE.glob(f"{name}.safetensors*"), *HERE.glob(f"{name}-0*.safetensors")]:
        old.unlink()
    if source.stat().st_size <= LIMIT:
        return [Path(shutil.copyfile(source, HERE / f"{name}.safetensors"))]
    save_torch_state_dict(load_file(source), HERE, filename_pattern=f"{name}{{suffix}}.safetensors", max_shard_size=LIMIT)
    return [*sorted(HERE.glob(f"{name}-0*.safetensors")), HERE / f"{name}.safetensors.index.json"]


def ship(run: Path, name: str) -> list[Path]:
    plain = parse((run / "recipe.yaml").read_text())
    written = []
    for section, key, suffix in (("model", "weights", ""), ("prune", "predictor", "_predictor")):
        file = plain[section].get(key)
        if file is None:
            continue
        files = copy(run / Path(file).name, f"{name}{suffix}")
        plain[section][key] = f"shipped:fashion_mnist/{files[-1].name}"
        written += files
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
