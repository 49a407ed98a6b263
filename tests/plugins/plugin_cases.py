"""Random inputs for TokenSample, with the situations that go wrong: ties, padding, single tokens, overflow, tiny scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitprune.ops.token_sample import Attributes, token_sample

KINDS = ("normal", "coarse", "skewed", "negative", "equal", "tiny", "wild")


def scores(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Scores of one kind, float32."""
    normal = rng.standard_normal(shape)
    values = {
        "normal": normal,
        "coarse": np.round(normal * 2) / 2,
        "skewed": np.exp(3 * normal),
        "negative": -np.abs(normal),
        "equal": np.full(shape, 0.25),
        "tiny": np.exp(10 * normal - 85),
        "wild": np.where(rng.random(shape) < 0.2, np.array([0.0, -0.0, np.nan, -np.inf])[rng.integers(4, size=shape)], normal),
    }
    return values[kind].astype(np.float32)


def validity(number: int, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Valid tokens: now and then only one per image or none, else a random share."""
    valid = rng.random(shape) < rng.choice([0.1, 0.6, 1.1])
    if number % 7 == 0:
        valid[:] = False
        valid[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = number % 2 == 0
    return valid


def attributes(mode: str, patches: int, rng: np.random.Generator) -> Attributes:
    """Attributes that fit the number of patches, overflow included."""
    return Attributes(
        mode,
        num_samples=int(rng.choice([1, 2, patches, max(1, patches // 2), 2 * patches, 65536])),
        threshold=float(rng.choice([0.0, 0.25, 0.5, -1.0])),
        capacity=int(rng.choice([0, 1, max(1, patches // 3), patches, 2 * patches])),
        pad_to_capacity=bool(rng.integers(2)),
    )


def cases(mode: str, number: int, sizes: tuple[int, ...], seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, Attributes]]:
    """`number` random (score, valid, attributes) with patch counts out of `sizes` and 1 to 4 images."""
    rng = np.random.default_rng(seed)
    for case in range(number):
        shape = (int(rng.integers(1, 5)), int(rng.choice(sizes)))
        score = scores(KINDS[case % len(KINDS)], shape, rng)
        yield score, validity(case, shape, rng), attributes(mode, shape[1], rng)


def assert_same(got: tuple, score: np.ndarray, valid: np.ndarray, setting: Attributes) -> None:
    """Compare (index, keep, count) with the specification, bit for bit."""
    index, keep, count = token_sample(score, valid, setting)
    note = f"{setting}\nscore={score!r}\nvalid={valid!r}"
    assert got[2] == count, note
    np.testing.assert_array_equal(got[0], index, err_msg=note, strict=True)
    np.testing.assert_array_equal(got[1], keep, err_msg=note, strict=True)
