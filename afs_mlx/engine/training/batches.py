"""Rows → micro-batches by true length under a token budget, the same for the same seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afs_mlx.engine.training.rows import Row

POOL = 16  # batches that rows are sorted within: little padding, and another neighbourhood in every epoch


@dataclass(frozen=True)
class Batch:
    """A micro-batch without padding.

    `tokens` is (n,) int32: the `shared` tokens that every row begins with, once, then what follows in each row, one
    after the other, `lengths` (rows,) of them. `positions` (m,) index the tokens whose next one is learnt, `targets`
    (m,) hold that next token, `weights` (m,) float32 say how much it counts. A row ends before its last learnt token:
    nothing looks at what comes after.
    """

    rows: tuple[int, ...]
    tokens: np.ndarray
    shared: int
    lengths: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    @property
    def supervised_tokens(self) -> int:
        return int(np.count_nonzero(self.weights))

    @property
    def weight(self) -> float:
        """What the summed loss is divided by for a mean."""
        return float(self.weights.sum(dtype=np.float64))


def group_by_length(rows: Sequence[Row], numbers: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """`numbers` grouped so that rows × longest row stays within `batch_tokens`; a longer row stands alone."""
    groups: list[list[int]] = []
    current: list[int] = []
    for number in sorted(numbers, key=lambda i: (len(rows[i].tokens), i)):
        longest = len(rows[number].tokens)
        if current and longest * (len(current) + 1) > batch_tokens:
            groups.append(current)
            current = []
        current.append(number)
    return [*groups, current] if current else groups


def epoch_batches(rows: Sequence[Row], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's micro-batches, in order, from a generator of its own: no epoch depends on the ones before.

    Rows are shuffled, sorted by length within pools of about `POOL` batches, grouped, and the groups shuffled.
    """
    generator = np.random.default_rng((seed, epoch))
    order = [int(i) for i in generator.permutation(len(rows))]
    mean = sum(len(row.tokens) for row in rows) / len(rows)
    pool = max(1, round(POOL * batch_tokens / mean))
    groups = [
        group
        for start in range(0, len(order), pool)
        for group in group_by_length(rows, order[start : start + pool], batch_tokens)
    ]
    return [groups[i] for i in generator.permutation(len(groups))]


def shared_tokens(rows: Sequence[Row]) -> int:
    """How many tokens every row begins with, up to one before the first position that learns."""
    limit = min(int(np.argmax(row.supervised)) for row in rows) - 1
    first = rows[0].tokens
    for row in rows:
        limit = min(limit, len(row.tokens))
        differs = np.flatnonzero(row.tokens[: max(0, limit)] != first[: max(0, limit)])
        limit = int(differs[0]) if len(differs) else limit
    return max(0, limit)


def batch_of(rows: Sequence[Row], numbers: Sequence[int], shared: int = 0, round_to: int = 1) -> Batch:
    """The rows of `numbers` as one batch; with `round_to` all are padded to one length, a multiple of it.

    Padding is never learnt and stands on the right, where a causal model's real tokens do not look.
    """
    ends = [int(np.flatnonzero(rows[i].supervised)[-1]) for i in numbers]
    width = max(ends) - shared
    width = -(-width // round_to) * round_to if round_to > 1 else 0
    tokens, lengths, positions, targets, weights = [rows[numbers[0]].tokens[:shared]], [], [], [], []
    start = shared
    for number, end in zip(numbers, ends, strict=True):
        row = rows[number]
        own = row.tokens[shared:end]
        learnt = np.flatnonzero(row.supervised[1:]) + 1  # nothing stands before a first token
        tokens.append(np.pad(own, (0, max(0, width - len(own)))))
        lengths.append(len(tokens[-1]))
        positions.append(start + learnt - 1 - shared)
        targets.append(row.tokens[learnt])
        weights.append(row.weights[learnt])
        start += lengths[-1]
    batch = Batch(
        rows=tuple(numbers),
        tokens=np.concatenate(tokens).astype(np.int32),
        shared=shared,
        lengths=np.array(lengths, dtype=np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        targets=np.concatenate(targets).astype(np.int32),
        weights=np.concatenate(weights).astype(np.float32),
    )
    return _rounded(batch, round_to)


def _rounded(batch: Batch, round_to: int) -> Batch:
    """Learnt positions filled up to a multiple of `round_to` by ones that weigh nothing: few shapes to compile."""
    missing = -len(batch.targets) % round_to
    if not missing:
        return batch
    fill = {name: np.pad(getattr(batch, name), (0, missing)) for name in ("positions", "targets", "weights")}
    return Batch(batch.rows, batch.tokens, batch.shared, batch.lengths, **fill)
