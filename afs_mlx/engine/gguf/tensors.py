"""Each tensor of the file: its type, its row order, and its bytes made a few rows at a time. Writes nothing."""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quant_shape_to_byte_shape

from afs_mlx.engine.gguf.encoding import Array, encode_rows
from afs_mlx.engine.gguf.layouts import ROPE_FACTORS, Target
from afs_mlx.engine.gguf.mixes import KINDS as KINDS
from afs_mlx.engine.gguf.mixes import LIMITS, Kind, type_of
from afs_mlx.engine.gguf.scaling import Llama3Scaling
from afs_mlx.engine.gguf.shape import ModelShape
from afs_mlx.engine.gguf.source import Packed, Rows, Stored
from afs_mlx.schema.gguf import GgufType

type FileType = GgufType

CHUNK_NUMBERS = 1 << 18  # 1 MB of float32 at a time, which a processor's cache holds


@dataclass(frozen=True)
class Planned:
    """One tensor of the file. `order` is the row order where rows move, None where they stay."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    source: Stored | Packed | None  # None: the rotation factors, which config.json gives
    source_name: str
    order: np.ndarray[Any, np.dtype[np.int64]] | None

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """The shape with the last axis in bytes, which is how gguf takes a tensor of any type."""
        return tuple(int(size) for size in quant_shape_to_byte_shape(self.shape, self.type))


def plan_tensors(
    weights: Mapping[str, Stored | Packed], targets: Mapping[str, Target], shape: ModelShape, kind: Kind
) -> list[Planned]:
    """Every tensor in file order, with its type and row order."""
    plan = []
    for source_name, target in targets.items():
        order = interleaved(target.shape[0], target.rotating_heads) if target.rotating_heads else None
        chosen = type_of(target.gguf, target.shape, kind, layers=shape.layers, tied=shape.tied)
        plan.append(Planned(target.gguf, target.shape, chosen, weights[source_name], source_name, order))
    if isinstance(shape.rope_scaling, Llama3Scaling):
        factors = (shape.head_width // 2,)
        plan.append(Planned(ROPE_FACTORS, factors, GGMLQuantizationType.F32, None, "rope_scaling", None))
    return plan


def interleaved(rows: int, heads: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The row order of q and k for a rotation of neighbours: 0, d/2, 1, d/2 + 1, … within each head of width d."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def encode(planned: Planned, shape: ModelShape, found: list[str], pool: Executor) -> Array:
    """The bytes of one tensor, chunks of rows at a time; adds to `found` what is not finite or too large."""
    if planned.source is None:
        assert isinstance(shape.rope_scaling, Llama3Scaling)  # for the type checker: `plan_tensors` made it from that
        return shape.rope_scaling.factors(shape.head_width, shape.rope_theta).view(np.uint8)
    encoded = np.empty(planned.byte_shape, dtype=np.uint8)
    rows = planned.shape[0]
    flat = encoded.reshape(rows, encoded.size // rows)
    source = planned.source

    def fill(chunk: tuple[slice, Rows]) -> tuple[float, int]:
        where, chosen = chunk
        numbers = source.floats(chosen)
        top = float(max(numbers.max(), -numbers.min()))  # NaN when there is one: then it is counted, which is slower
        if not math.isfinite(top):
            return 0.0, int(np.count_nonzero(~np.isfinite(numbers)))
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is reported below
            flat[where] = encode_rows(numbers, planned.type)
        return top, 0

    # mlx unpacks, and wants to stay in its thread.
    mapped = map if isinstance(source, Packed) else pool.map
    tops, unfit = zip(*mapped(fill, _chunks(planned)), strict=True)
    if sum(unfit):
        found.append(f"{planned.source_name}: {sum(unfit)} of {math.prod(planned.shape)} numbers are NaN or infinite")
    elif max(tops) > LIMITS[planned.type]:
        found.append(
            f"{planned.source_name}: {max(tops):.6g} is beyond {LIMITS[planned.type]:g}, "
            f"the range of {planned.type.name}"
        )
    return encoded


def _chunks(planned: Planned) -> Iterator[tuple[slice, Rows]]:
    """Rows of the file, and where each comes from."""
    step = max(1, CHUNK_NUMBERS // math.prod(planned.shape[1:]))
    for start in range(0, planned.shape[0], step):
        where = slice(start, start + step)
        yield where, where if planned.order is None else planned.order[where]
