"""Rows → micro-batches by true length under a token budget, the same for the same seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afs_mlx.engine.training.rows import Row


@dataclass(frozen=True)
class Batch:
    """Right-padded rows.

    `inputs` is (rows, seq) int32; `positions` (n,) indexes the flattened (rows · seq) positions whose next token is
    learnt, `targets` (n,) holds that token. Padding stands in neither.
    """

    inputs: np.ndarray
    positions: np.ndarray
    targets: np.ndarray

    @property
    def supervised_tokens(self) -> int:
        return len(self.targets)


def group_by_length(rows: Sequence[Row], batch_tokens: int) -> list[list[int]]:
    """Row numbers grouped so that rows × longest row stays within `batch_tokens`; a longer row stands alone."""
    groups: list[list[int]] = []
    current: list[int] = []
    for number in sorted(range(len(rows)), key=lambda i: (len(rows[i].tokens), i)):
        longest = len(rows[number].tokens)
        if current and longest * (len(current) + 1) > batch_tokens:
            groups.append(current)
            current = []
        current.append(number)
    return [*groups, current] if current else groups


def batch_of(rows: Sequence[Row]) -> Batch:
    """Pad on the right, where a causal model's real tokens never look."""
    width = max(len(row.tokens) for row in rows) - 1
    inputs = np.zeros((len(rows), width), dtype=np.int32)
    positions: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for index, row in enumerate(rows):
        inputs[index, : len(row.tokens) - 1] = row.tokens[:-1]
        learnt = np.flatnonzero(row.supervised[1:])
        positions.append(index * width + learnt)
        targets.append(row.tokens[1:][learnt])
    return Batch(inputs, np.concatenate(positions).astype(np.int32), np.concatenate(targets).astype(np.int32))


def epoch_order(groups: Sequence[Sequence[int]], seed: int, epoch: int) -> list[int]:
    """The order of the groups in an epoch, from a generator of its own: no epoch depends on the ones before."""
    return [int(i) for i in np.random.default_rng((seed, epoch)).permutation(len(groups))]
