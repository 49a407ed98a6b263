"""README's first screen: runs its commands on the shipped model and writes what they gave below them.

    python benchmarks/first_screen.py [--stored]

The commands are those of the first block of README.md, and an engine build besides. --stored writes the block again from the stored results.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README, STORED = ROOT / "README.md", ROOT / "benchmarks" / "results" / "first_screen.json"
BEGIN, END = "<!-- first screen: python benchmarks/first_screen.py -->", "<!-- end of first screen -->"
ENGINE = "vitprune build-engine out --target rtx"


def commands(text: str) -> list[str]:
    """The lines of README's first block, without their comments."""
    block = re.search(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return [" ".join(shlex.split(line, comments=True)) for line in block[1].splitlines() if line.strip()]


def run(line: str, place: Path) -> dict[str, Any]:
    """The document of one command."""
    words = [str(ROOT / word) if word.startswith("recipes/") else word for word in shlex.split(line)[1:]]
    done = subprocess.run([sys.executable, "-m", "vitprune", *words, "--json"], cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{line}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def facts(text: str) -> dict[str, Any]:
    """Run everything; what the block says."""
    lines = commands(text)
    with tempfile.TemporaryDirectory() as folder:
        found = {line.split()[1]: run(line, Path(folder)) for line in [*lines, ENGINE]}
    accuracy, speed, engine = found["validate"]["comparison"]["accuracy"], found["benchmark"], found["build-engine"]["engine"]
    return {
        "commands": lines, "images": found["validate"]["comparison"]["images"], "accuracy": accuracy, "macs": found["validate"]["macs"],
        "logits_max_abs": found["validate"]["comparison"]["logits_max_abs"], "status": found["validate"]["status"],
        "speed": speed["results"][0], "rounds": speed["rounds"], "runtime": speed["runtime"], "machine": speed["machine"],
        "engine": {"runtime": engine["facts"]["runtime"], "bytes": engine["engine_bytes"]},
    }  # fmt: skip


def block(found: dict[str, Any]) -> str:
    """The table."""
    speed, macs, accuracy = found["speed"], found["macs"], found["accuracy"]
    low, high = speed["ratio_interval"]
    dense, pruned = speed["dense"], speed["pruned"]
    engine = found["engine"]
    where = f"ONNX Runtime {found['runtime']['version']}, one CPU thread, batch {speed['batch']}"
    return "\n".join([
        BEGIN, "",
        "| what they gave | dense | pruned |",
        "|---|---|---|",
        f"| **speed**, {where} | {dense['median_ms']:.1f} ms | {pruned['median_ms']:.1f} ms, **{1 / speed['ratio']:.2f}x as fast** (95 % interval {1 / high:.2f} to {1 / low:.2f}) |",
        f"| top-1 accuracy, {found['images']:,} test images | {accuracy['dense']:.2f} % | {accuracy['pruned']:.2f} % |",
        f"| MACs per image | {macs['dense'] / 1e6:.1f} M | {macs['pruned'] / 1e6:.1f} M ({macs['ratio']:.2f}x) |",
        f"| logits against PyTorch, worst | – | {found['logits_max_abs']:.1e}, gates {found['status']} |",
        f"| engine (`{ENGINE}`, built without a GPU) | – | {engine['bytes'] / 2**20:.1f} MiB, {engine['runtime']} |",
        "", END,
    ])  # fmt: skip


def written(text: str, found: dict[str, Any]) -> str:
    """README with the block of these results."""
    before, rest = text.split(BEGIN, 1)
    return before + block(found) + rest.split(END, 1)[1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--stored", action="store_true")
    text = README.read_text(encoding="utf-8")
    if not options.parse_args().stored:
        STORED.write_text(json.dumps(facts(text), indent=1) + "\n", encoding="utf-8")
    README.write_text(written(text, json.loads(STORED.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
