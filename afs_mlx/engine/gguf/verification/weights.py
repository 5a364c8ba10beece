"""The numbers of the file against those of the model folder: decoded rows within what the type can round."""

import math
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from afs_mlx.engine.gguf.verification.opened import Opened, Order
from afs_mlx.schema.verification import Check

type Floats = np.ndarray[Any, np.dtype[np.float32]]

SHOWN = 5
QUICK_NUMBERS = 1 << 20  # of each tensor, in whole rows spread over it
CHUNK_NUMBERS = 1 << 22
SMALLEST_SCALE = 1e-5  # below it a block's scale is rounded to nothing, as an f16

# The largest error, as a share of the largest number of the block (of the number itself where there are no blocks).
# Half a step, and what the scale's own rounding adds; a whole step where one end of the range is cut off (Q4_0, Q5_0).
# The K-quants look for scales that lower the mean error and let single numbers go further: twice the largest measured
# on 400 × 1024 numbers of eight distributions (Q4_K 0.117, Q5_K 0.065, Q6_K 0.023, all for even ones).
_T = GGMLQuantizationType
BOUNDS: dict[GGMLQuantizationType, float] = {
    _T.F32: 0.0,
    _T.F16: 2**-11,
    _T.BF16: 2**-8,
    _T.Q8_0: 0.6 / 127,
    _T.Q6_K: 0.045,
    _T.Q5_K: 0.13,
    _T.Q5_1: 1.1 / 31,
    _T.Q5_0: 1.1 / 16,
    _T.Q4_K: 0.24,
    _T.Q4_1: 1.1 / 15,
    _T.Q4_0: 1.1 / 8,
}
FLOORS = {_T.F32: 0.0, _T.F16: 2**-25, _T.BF16: 2**-133}


@dataclass
class Compared:
    """So far: `shares` is the largest error of each type beside its bound."""

    numbers: int = 0
    shares: dict[str, float] = field(default_factory=dict)


def check_weights_of(opened: Opened, *, thorough: bool) -> Check:
    """Every tensor, all rows where `thorough`, else rows spread over it; NaN and infinity are errors in any."""
    found, compared = [], Compared()
    for name, tensor in opened.tensors.items():
        source = opened.sources.get(name)
        if source is None or tensor.shape != source.shape:
            if not np.isfinite(dequantize(tensor.data, tensor.type)).all():
                found.append(f"{name}: NaN or infinite")
            continue  # the structure's matter
        problem = _compare(opened, name, compared, thorough=thorough)
        if problem:
            found.append(f"{name}: {problem}")
    total = sum(math.prod(source.shape) for source in opened.sources.values())
    figures: dict[str, float | int | str] = {"numbers compared": compared.numbers, "numbers": total}
    figures |= {f"largest error, {kind}": float(f"{share:.3g}") for kind, share in sorted(compared.shares.items())}
    if not found:
        return Check(name="tensors", status="passed", figures=figures)
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return Check(name="tensors", status="failed", reason="; ".join(found[:SHOWN]) + more, figures=figures)


def _compare(opened: Opened, name: str, compared: Compared, *, thorough: bool) -> str:
    """What is wrong with one tensor, empty where nothing is."""
    tensor, source = opened.tensors[name], opened.sources[name]
    kind = tensor.type
    if kind not in BOUNDS:
        return f"type {kind.name} is not checked"
    rows, width = source.shape[0], math.prod(source.shape[1:])
    data = tensor.data.reshape(rows, -1)
    order = opened.order(name, rows)
    unfit, wrong, worst = 0, 0, 0.0
    for chosen in _chosen_rows(rows, width, thorough=thorough):
        written = dequantize(np.ascontiguousarray(data[chosen]), kind).reshape(len(chosen), width)
        expected = source.floats(chosen if order is None else order[chosen]).reshape(len(chosen), width)
        compared.numbers += written.size
        unfit += int(np.count_nonzero(~np.isfinite(written)))
        error, limit = _errors(written, expected, kind)
        with np.errstate(invalid="ignore"):
            wrong += int(np.count_nonzero(error > limit * BOUNDS[kind] + FLOORS.get(kind, SMALLEST_SCALE)))
            share = error / np.maximum(limit, SMALLEST_SCALE)
        worst = max(worst, float(np.nanmax(share, initial=0.0)))
    compared.shares[kind.name] = max(compared.shares.get(kind.name, 0.0), worst)
    if unfit:
        return f"{unfit} numbers are NaN or infinite"
    return f"{wrong} numbers are not what {kind.name} makes of the model's" if wrong else ""


def _errors(written: Floats, expected: Floats, kind: GGMLQuantizationType) -> tuple[Floats, Floats]:
    """The error of each number, and the largest number of its block (one column per block)."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    blocks = expected.reshape(-1, block)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.abs(written.reshape(-1, block) - blocks), np.abs(blocks).max(axis=1, keepdims=True)


def _chosen_rows(rows: int, width: int, *, thorough: bool) -> list[Order]:
    """Row numbers in chunks; the first and the last row are always among them."""
    count = rows if thorough else min(rows, max(2, QUICK_NUMBERS // width))
    chosen = np.unique(np.linspace(0, rows - 1, count).astype(np.int64))
    return np.array_split(chosen, math.ceil(chosen.size * width / CHUNK_NUMBERS))
