"""Which batches a probe should run: few, far apart in what they cost, none that might not fit."""

from collections.abc import Sequence

import numpy as np

from afs_mlx.engine.training.planning.costs import held, work
from afs_mlx.engine.training.planning.fitting import MEMORY_DOUBT, NOISE, TIME_DOUBT
from afs_mlx.engine.training.planning.shapes import BatchShape, Columns, ModelShape
from afs_mlx.schema.recipe import Recipe


def probe_batches(
    batches: Sequence[BatchShape], model: ModelShape, recipe: Recipe, limit_bytes: float, count: int = 3
) -> list[int]:
    """Indices of `count` batches to measure, the cheapest first.

    One after the other, that whose measurement says most about what the others left open (D-optimal design: the
    largest determinant of the information on the factors of time and memory). Left out are those whose counted memory
    is above `limit_bytes`; where all are, the smallest stays.
    """
    recipe = model.applied(recipe)
    columns = Columns.of(batches, recipe)
    time = np.stack(list(work(columns, model, recipe, training=True).values()), axis=1)
    memory = np.stack(list(held(columns, model, recipe, training=True).values()), axis=1)
    size, cost = memory.sum(axis=1), time.sum(axis=1)
    allowed = [int(i) for i in np.flatnonzero(size <= limit_bytes)] or [int(np.argmin(size))]
    _, first = np.unique(np.column_stack([time, memory])[allowed], axis=0, return_index=True)
    left = [allowed[i] for i in first]
    information = [np.eye(parts.shape[1]) / doubt**2 for parts, doubt in ((time, TIME_DOUBT), (memory, MEMORY_DOUBT))]
    rows = [parts / np.maximum(parts.sum(axis=1, keepdims=True), 1e-30) / NOISE for parts in (time, memory)]
    chosen: list[int] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda i: sum(_gain(known, row[i]) for known, row in zip(information, rows, strict=True)))
        chosen.append(best)
        left.remove(best)
        information = [known + np.outer(row[best], row[best]) for known, row in zip(information, rows, strict=True)]
    return sorted(chosen, key=lambda i: float(cost[i]))


def _gain(information: np.ndarray, row: np.ndarray) -> float:
    """By how much a measurement raises the logarithm of the determinant (matrix determinant lemma)."""
    return float(np.log1p(row @ np.linalg.solve(information, row)))
