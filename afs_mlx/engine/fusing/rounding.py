"""Float32 weights → stored numbers: 16 bits, or mlx's affine grids. Knows nothing of models.

Rounding to the nearest number loses a small update where the base lies on the grid already: each weight falls back to
where it was. `rounded` then carries the error on, along the inputs that the update reads: (Q - W - ΔW)·V stays near 0
for an orthonormal V (in, r), so that a few weights take one step each and the adapter's effect survives. It is the
error feedback of GPTQ (Frantar et al. 2022) with VVᵀ in place of the inputs' second moments.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from afs_mlx.engine.fusing.adding import Floats

# The share of a weight's own error in what is kept small, against the carried one: less moves more weights.
DAMPING = 1 / 16


@dataclass(frozen=True)
class Grid:
    """The numbers code · scale + bias, a scale and a bias (rows, groups) for each group of a row."""

    scales: Floats
    biases: Floats
    bits: int
    group_size: int

    def nearest(self, wanted: Floats, column: int) -> Floats:
        """The grid's number for one column (rows,) of a weight."""
        scale, bias = self.scales[:, column // self.group_size], self.biases[:, column // self.group_size]
        nearest: Floats = np.clip(np.rint((wanted - bias) / scale), 0, 2**self.bits - 1) * scale + bias
        return nearest

    def codes(self, weight: Floats) -> np.ndarray:
        """The code (rows, in) uint8 of the grid's number next to each weight."""
        grouped = weight.reshape(len(weight), -1, self.group_size)
        codes = np.rint((grouped - self.biases[..., None]) / self.scales[..., None])
        return np.clip(codes, 0, 2**self.bits - 1).astype(np.uint8).reshape(weight.shape)

    def decoded(self, codes: np.ndarray) -> Floats:
        """What codes stand for."""
        grouped = codes.reshape(len(codes), -1, self.group_size)
        decoded: Floats = grouped * self.scales[..., None] + self.biases[..., None]
        return decoded.reshape(codes.shape)


def fresh_grid(weight: Floats, bits: int, group_size: int, dtype: mx.Dtype) -> Grid:
    """mlx's own grid for these rows, its scales and biases as `dtype` will hold them."""
    _, *parts = mx.quantize(mx.array(weight), group_size, bits)
    scales, biases = (np.array(part.astype(dtype).astype(mx.float32)) for part in parts)
    return Grid(np.where(scales == 0, np.float32(1), scales), biases, bits, group_size)


def widened(grid: Grid, weight: Floats, dtype: mx.Dtype) -> Grid:
    """A base's grid, renewed in the groups that the update has left by more than half a step."""
    grouped = weight.reshape(len(weight), -1, grid.group_size)
    positions = (grouped - grid.biases[..., None]) / grid.scales[..., None]
    outside = (positions.min(axis=2) < -0.5) | (positions.max(axis=2) > 2**grid.bits - 0.5)
    if not outside.any():
        return grid
    fresh = fresh_grid(weight, grid.bits, grid.group_size, dtype)
    scales, biases = np.where(outside, fresh.scales, grid.scales), np.where(outside, fresh.biases, grid.biases)
    return Grid(scales, biases, grid.bits, grid.group_size)


def to_dtype(weight: Floats, dtype: mx.Dtype) -> Floats:
    """Rounded once to a floating type, as float32."""
    rounded: Floats = np.array(mx.array(weight).astype(dtype).astype(mx.float32))
    return rounded


def with_feedback(
    weight: Floats, nearest: Callable[[Floats, int], Floats], directions: Floats, own: Floats | None = None
) -> Floats:
    """Round column by column, keeping the error small along `directions` (in, r).

    `own` (rows, in) is one further direction for each row, for changes that are not low-rank.
    """
    columns = np.ascontiguousarray(weight.T)
    rounded = np.empty_like(columns)
    carried = np.zeros((len(weight), directions.shape[1]), np.float32)
    carried_own = np.zeros(len(weight), np.float32)
    owned = None if own is None else np.ascontiguousarray(own.T)
    damping = DAMPING * (directions.shape[1] + (own is not None)) / len(directions)
    for column, direction in enumerate(directions):
        pull, strength = carried @ direction, direction @ direction + damping
        if owned is not None:
            pull, strength = pull + carried_own * owned[column], strength + owned[column] ** 2
        rounded[column] = nearest(columns[column] - pull / strength, column)
        error = rounded[column] - columns[column]
        carried += np.outer(error, direction)
        if owned is not None:
            carried_own += error * owned[column]
    return np.ascontiguousarray(rounded.T)


def nearest_float(dtype: mx.Dtype) -> Callable[[Floats, int], Floats]:
    """`nearest` for a floating type. bfloat16, the upper half of a float32, is rounded to even by its bits."""

    def bfloat16(wanted: Floats, _: int) -> Floats:
        bits = wanted.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)

    def float16(wanted: Floats, _: int) -> Floats:
        with np.errstate(over="ignore"):
            return wanted.astype(np.float16).astype(np.float32)

    return bfloat16 if dtype == mx.bfloat16 else float16


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (rows, in) as mlx packs them: one stream of bits a row, lowest first, in uint32 (rows, in · bits / 32)."""
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(stream.reshape(len(codes), -1), axis=-1, bitorder="little").view(np.uint32)
