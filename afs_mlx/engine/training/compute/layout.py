"""Where the tokens of a batch without padding stand when rows are laid side by side for attention."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from afs_mlx.engine.training.batches import Batch
from afs_mlx.engine.training.compute.custom import with_gradient


@dataclass(frozen=True)
class Layout:
    """`shared` tokens first, then rows that stand one after the other.

    `beside` (rows, longest) indexes, for every place of the padded form, the token (counted after the shared ones)
    that stands there, some token of the row in the padding; `real` (rows · longest,) is 1 where no padding is, and
    `back` (n,) the place of every token. All None where the rows are equally long.
    """

    shared: int
    rows: int
    beside: mx.array | None
    back: mx.array | None
    real: mx.array | None

    @classmethod
    def of(cls, batch: Batch) -> "Layout":
        longest = int(batch.lengths.max())
        if int(batch.lengths.min()) == longest:
            return cls(batch.shared, len(batch.lengths), None, None, None)
        starts = np.concatenate([[0], np.cumsum(batch.lengths)[:-1]])
        columns = np.arange(longest)
        beside = starts[:, None] + np.minimum(columns[None], batch.lengths[:, None] - 1)
        real = (columns[None] < batch.lengths[:, None]).reshape(-1)
        arrays = beside.astype(np.int32), np.flatnonzero(real).astype(np.int32), real.astype(np.float32)
        return cls(batch.shared, len(batch.lengths), *map(mx.array, arrays))

    def side_by_side(self, flat: mx.array) -> mx.array:
        """(n, …) → (rows, longest, …)."""
        if self.beside is None or self.back is None:
            return flat.reshape(self.rows, -1, *flat.shape[1:])
        return _spread(flat, self.beside, self.back)

    def one_after_the_other(self, padded: mx.array) -> mx.array:
        """(rows, longest, …) → (n, …)."""
        flat = padded.reshape(-1, *padded.shape[2:])
        if self.beside is None or self.back is None or self.real is None:
            return flat
        return _collect(flat, self.back, self.beside, self.real)


# Each is the other's gradient: both ways only read, where mlx's own gradient of an index adds row by row.


def _spread_forward(flat: mx.array, beside: mx.array, _back: mx.array) -> mx.array:
    return flat[beside]


def _spread_gradient(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
    """Keys and values in the padding are seen by queries in the padding alone, and these get no gradient."""
    _flat, beside, back = primals
    return cotangent.reshape(-1, *cotangent.shape[2:])[back], beside, back


def _collect_forward(flat: mx.array, back: mx.array, _beside: mx.array, _real: mx.array) -> mx.array:
    return flat[back]


def _collect_gradient(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
    """Zero in the padding: a gradient there would go on, through attention, into real tokens."""
    _flat, back, beside, real = primals
    spread = cotangent[beside.reshape(-1)]
    spread = spread * real.astype(spread.dtype).reshape(-1, *(1,) * (spread.ndim - 1))
    return spread, back, beside, real


_spread = with_gradient(_spread_forward, _spread_gradient)
_collect = with_gradient(_collect_forward, _collect_gradient)
