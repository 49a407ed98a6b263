"""Decisions in a type, and logits, against the PyTorch reference in the same type, for every method, on 1,000 test images.

    python recipes/fashion_mnist/flips.py                  # fp16, all methods, on the shipped images: some 15 minutes; exit 1 where a flip is illegal
    python recipes/fashion_mnist/flips.py --mode int8 --methods evit topk --data /usr/share/datasets/fashion-mnist    # ranges of training images
    python recipes/fashion_mnist/report.py                 # RESULTS.md from the stored JSON

Methods and recipes are those of `precision.py`. A flip is illegal where the reference's decision lies further from its opposite than the
margin of the type. What is stored is not run again (--again does).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from precision import HERE, METHODS, MODES, evaluate

IMAGES = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=HERE / "test_images.npz", help="folder with Fashion-MNIST's IDX files, or an npz"
    )
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--mode", default="fp16", choices=MODES)
    parser.add_argument("--again", action="store_true", help="run what is stored already, too")
    parser.add_argument("--output", type=Path, default=HERE / "flips.json")
    args = parser.parse_args()
    stored = json.loads(args.output.read_text()) if args.output.exists() else {}
    for method in args.methods:
        if args.mode in stored.get(method, {}) and not args.again:
            continue
        for found in evaluate(method, args.data, IMAGES, IMAGES, [args.mode]):
            if args.mode in found["modes"]:
                stored.setdefault(method, {})[args.mode] = found["modes"][args.mode]["reference"]
        ordered = {name: stored[name] for name in METHODS if name in stored}
        args.output.write_text(json.dumps(ordered, indent=1) + "\n")
        print(method, stored[method][args.mode], flush=True)
    return 1 if any(found["illegal"] for modes in stored.values() for found in modes.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
