"""Write test_images.npz: the first 1,000 images of Fashion-MNIST's test set (MIT licence), uint8 with labels."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from train import DATA, read_idx

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "test_images.npz")
    args = parser.parse_args()
    images = read_idx(args.data / "t10k-images-idx3-ubyte.gz")[:1000]
    labels = read_idx(args.data / "t10k-labels-idx1-ubyte.gz")[:1000].astype(np.int64)
    np.savez_compressed(args.out, images=images, labels=labels)
