"""One weight from its form in the base to its form in the result. Knows nothing of the model around it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from afs_mlx.engine.fusing.adding import Change, Floats
from afs_mlx.engine.fusing.forms import Form, own_form
from afs_mlx.engine.fusing.rounding import Grid, fresh_grid, nearest_float, packed, to_dtype, widened, with_feedback

BLOCK_WEIGHTS = 4_194_304  # 16 MB of float32
LITTLE = 0.01  # plain rounding to 16 bits is good enough where it loses no more of the update than this

type Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Source:
    """A weight (out, in) as the base stores it; of a quantised one `arrays` holds `scales` and `biases` too."""

    arrays: dict[str, mx.array]
    form: Form | None

    @classmethod
    def of(cls, module: nn.Module) -> "Source":
        """A layer's weight; a bias that it adds to its outputs is no part of it."""
        names = [name for name in ("weight", "scales", "biases") if module.get(name) is not None]
        return cls({name: module[name] for name in names}, own_form(module))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), counted in weights also where several are packed into one integer."""
        rows, columns = self.arrays["weight"].shape
        return rows, columns * 32 // self.form.bits if self.form else columns

    def grid_dtype(self, plain: mx.Dtype) -> mx.Dtype:
        """The type that scales have in the result: the base's own, else that of its plain weights."""
        own = self.arrays["scales"].dtype if "scales" in self.arrays else plain
        return own if mx.issubdtype(own, mx.floating) else plain

    def floats(self, rows: slice) -> Floats:
        """The chosen rows in float32."""
        weight = self.arrays["weight"][rows]
        if self.form is None:
            return _numpy(weight)
        scales, form = self.arrays["scales"][rows], self.form
        if "biases" not in self.arrays:
            return _numpy(mx.dequantize(weight, scales, None, form.group_size, form.bits, form.mode))
        # In float32: mlx would round the products to the type of the scales.
        scales, biases = (part.astype(mx.float32) for part in (scales, self.arrays["biases"][rows]))
        return _numpy(mx.dequantize(weight, scales, biases, form.group_size, form.bits, form.mode))

    def grid(self, rows: slice, form: Form) -> Grid:
        """The chosen rows' own affine grid."""
        scales, biases = (_numpy(self.arrays[name][rows]) for name in ("scales", "biases"))
        return Grid(np.where(scales == 0, np.float32(1), scales), biases, form.bits, form.group_size)


@dataclass(frozen=True)
class Stored:
    """The arrays to write with the types that their bytes stand for, and ⟨ΔŴ, ΔW⟩ / ⟨ΔW, ΔW⟩ (1 without an update)."""

    arrays: dict[str, tuple[Array, mx.Dtype]]
    survival: float
    finite: bool


def stored(source: Source, change: Change | None, form: Form | None, dtype: mx.Dtype) -> Stored:
    """Add, round and encode a weight, some rows at a time; `dtype` is that of plain weights."""
    grid_dtype = source.grid_dtype(dtype)
    product = square = 0.0
    finite = True
    blocks: list[dict[str, Array]] = []
    directions = change.directions if change else None
    for rows in _blocks(*source.shape):
        base = source.floats(rows)
        wanted = change.added(base, rows) if change else base
        finite &= bool(np.isfinite(wanted).all())
        if not finite:
            break
        feedback = _Feedback(directions, None if change is None or change.low_rank else wanted - base)
        if form is None:
            rounded = _plain(base, wanted, feedback, dtype)
            blocks.append({"weight": as_bytes(rounded, dtype)})
        else:
            grid = _grid(source, rows, wanted, form, grid_dtype)
            # Only a base that lies on a grid as coarse as this one falls back to where it was.
            held = source.form is not None and source.form.bits <= form.bits
            codes = grid.codes(feedback.round(wanted, grid.nearest) if held and change else wanted)
            rounded = grid.decoded(codes)
            scales, biases = (as_bytes(part, grid_dtype) for part in (grid.scales, grid.biases))
            blocks.append({"weight": packed(codes, form.bits), "scales": scales, "biases": biases})
        finite &= bool(np.isfinite(rounded).all())
        product += _inner(rounded - base, wanted - base)
        square += _inner(wanted - base, wanted - base)
    whole = {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else {})}
    types = {"weight": dtype if form is None else mx.uint32}
    arrays = {name: (array, types.get(name, grid_dtype)) for name, array in whole.items()}
    return Stored(arrays, product / square if square else 1.0, finite)


def as_bytes(weight: Floats, dtype: mx.Dtype) -> Array:
    """Numbers that `dtype` holds exactly, in that type; of bfloat16, which numpy lacks, its bits."""
    return raw(mx.array(weight).astype(dtype))


def raw(array: mx.array) -> Array:
    """An mlx array's bytes for a file."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


@dataclass(frozen=True)
class _Feedback:
    """Along what the error is kept small: the update's inputs, and each row's own change where that is not low-rank."""

    directions: Floats | None
    delta: Floats | None

    def round(self, wanted: Floats, nearest: Any) -> Floats:
        if self.directions is None:
            return wanted
        own = None
        if self.delta is not None:
            lengths: Floats = np.linalg.norm(self.delta, axis=1, keepdims=True).astype(np.float32)
            own = (self.delta / np.where(lengths == 0, np.float32(1), lengths)).astype(np.float32)
        return with_feedback(wanted, nearest, self.directions, own)


def _plain(base: Floats, wanted: Floats, feedback: _Feedback, dtype: mx.Dtype) -> Floats:
    """Rounded to a floating type; with feedback where the nearest numbers lose some of the update."""
    rounded = to_dtype(wanted, dtype)
    if dtype == mx.float32 or feedback.directions is None or not np.isfinite(rounded).all():
        return rounded
    delta = wanted - base
    lost = abs(1 - _inner(rounded - base, delta) / (_inner(delta, delta) or 1))
    return rounded if lost <= LITTLE else feedback.round(wanted, nearest_float(dtype))


def _grid(source: Source, rows: slice, wanted: Floats, form: Form, dtype: mx.Dtype) -> Grid:
    if source.form == form and form.mode == "affine":
        return widened(source.grid(rows, form), wanted, dtype)
    return fresh_grid(wanted, form.bits, form.group_size, dtype)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK_WEIGHTS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _inner(first: Floats, second: Floats) -> float:
    return float(np.einsum("ij,ij->", first, second, dtype=np.float64))


def _numpy(array: mx.array) -> Floats:
    floats: Floats = np.array(array.astype(mx.float32))
    return floats
