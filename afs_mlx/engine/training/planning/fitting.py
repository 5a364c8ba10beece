"""Few measurements, several unknowns: least squares with factors that are never negative, and 1 where nothing tells."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from afs_mlx.engine.training.planning.shapes import Column

NOISE = 0.05  # relative spread of a measurement
TIME_DOUBT, MEMORY_DOUBT = 0.7, 0.3  # relative spread of a counted cost around the real one


def fitted(parts: Sequence[dict[str, float]], values: Sequence[float], doubt: float) -> dict[str, float]:
    """Factors f ≥ 0 by part, such that Σ f · part is each value, all by the same weight.

    Minimises Σ ((Σ f · part - value) / (NOISE · value))² + Σ ((f - 1) / doubt)², the most likely factors if both
    spreads are normal. Values must be positive. Without measurements every factor is 1.
    """
    names = sorted({name for row in parts for name in row})
    rows = [
        np.array([row.get(name, 0.0) for name in names]) / (NOISE * value)
        for row, value in zip(parts, values, strict=True)
    ]
    matrix = np.vstack([*rows, np.eye(len(names)) / doubt])
    target = np.array([1 / NOISE] * len(rows) + [1 / doubt] * len(names))
    return dict(zip(names, map(float, _non_negative(matrix, target)), strict=True))


def _non_negative(matrix: np.ndarray, target: np.ndarray) -> Column:
    """The x ≥ 0 that comes nearest to matrix · x = target, exactly: the best over every choice of zeros."""
    count = matrix.shape[1]
    best, best_error = np.zeros(count), float(target @ target)
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            solved = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            error = float(np.sum((matrix[:, chosen] @ solved - target) ** 2))
            if (solved >= 0).all() and error < best_error:
                best, best_error = np.zeros(count), error
                best[list(chosen)] = solved
    return best
