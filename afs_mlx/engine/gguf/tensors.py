"""Each tensor of the file: its type, its row order, and its bytes made a few rows at a time. Writes nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from gguf.quants import quant_shape_to_byte_shape, quantize

from afs_mlx.engine.gguf.layouts import ROPE_FACTORS, Target
from afs_mlx.engine.gguf.shape import ModelShape
from afs_mlx.engine.gguf.source import Packed, Rows, Stored

type FileType = Literal["f32", "f16", "q8_0"]
type Array = np.ndarray[Any, Any]

CHUNK_NUMBERS = 1 << 22  # 16 MB of float32 at a time


@dataclass(frozen=True)
class Kind:
    """What a file type means for matrices: their type, general.file_type, and the largest number that it holds."""

    tensor: GGMLQuantizationType
    file: LlamaFileType
    limit: float


F16_LIMIT = 65504.0
KINDS: dict[str, Kind] = {
    "f32": Kind(GGMLQuantizationType.F32, LlamaFileType.ALL_F32, float(np.finfo(np.float32).max)),
    "f16": Kind(GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16, F16_LIMIT),
    "q8_0": Kind(GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0, F16_LIMIT * 127),  # its scale is an f16
}
LIMITS = {kind.tensor: kind.limit for kind in KINDS.values()}


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
    weights: Mapping[str, Stored | Packed],
    targets: Mapping[str, Target],
    shape: ModelShape,
    matrix_type: GGMLQuantizationType,
) -> list[Planned]:
    """Every tensor in file order, with its type and row order."""
    plan = []
    for source_name, target in targets.items():
        order = _interleaved(target.shape[0], target.rotating_heads) if target.rotating_heads else None
        chosen = _type_for(target.shape, matrix_type)
        plan.append(Planned(target.gguf, target.shape, chosen, weights[source_name], source_name, order))
    if shape.rope_scaling is not None:
        factors = (shape.head_width // 2,)
        plan.append(Planned(ROPE_FACTORS, factors, GGMLQuantizationType.F32, None, "rope_scaling", None))
    return plan


def _type_for(shape: tuple[int, ...], matrix_type: GGMLQuantizationType) -> GGMLQuantizationType:
    """Vectors stay float32, as llama.cpp wants norms and biases; rows that do not fill Q8_0's blocks become F16."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[matrix_type]
    return GGMLQuantizationType.F16 if shape[-1] % block else matrix_type


def _interleaved(rows: int, heads: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The row order of q and k for a rotation of neighbours: 0, d/2, 1, d/2 + 1, … within each head of width d."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def encode(planned: Planned, shape: ModelShape, found: list[str]) -> Array:
    """The bytes of one tensor, a chunk of rows at a time; adds to `found` what is not finite or too large."""
    if planned.source is None:
        assert shape.rope_scaling is not None  # for the type checker: `plan_tensors` made the entry from it
        return shape.rope_scaling.factors(shape.head_width, shape.rope_theta).view(np.uint8)
    encoded = np.empty(planned.byte_shape, dtype=np.uint8)
    rows = planned.shape[0]
    step = max(1, CHUNK_NUMBERS // math.prod(planned.shape[1:]))
    bytes_per_row = encoded.size // rows
    flat = encoded.reshape(rows, bytes_per_row)
    unfit, largest = 0, 0.0
    for start in range(0, rows, step):
        chosen: Rows = slice(start, start + step) if planned.order is None else planned.order[start : start + step]
        numbers = planned.source.floats(chosen)
        top = float(max(numbers.max(), -numbers.min()))  # NaN when there is one: then it is counted, which is slower
        if math.isfinite(top):
            largest = max(largest, top)
        else:
            unfit += int(np.count_nonzero(~np.isfinite(numbers)))
        with np.errstate(all="ignore"):  # what does not fit is reported below
            flat[start : start + step] = quantize(numbers, planned.type).view(np.uint8).reshape(-1, bytes_per_row)
    if unfit:
        found.append(f"{planned.source_name}: {unfit} of {math.prod(planned.shape)} numbers are NaN or infinite")
    elif largest > LIMITS[planned.type]:
        found.append(
            f"{planned.source_name}: {largest:.6g} is beyond {LIMITS[planned.type]:g}, the range of {planned.type.name}"
        )
    return encoded
