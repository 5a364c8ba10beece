"""Numbers as the bytes of each GGUF type, equal to ggml's own, but for a zero's sign. Knows nothing of models or files.

The `gguf` package encodes most types. Q8_0 and BF16 are here because they are the common ones and numpy has faster
ways; K-quants come from the optional package `libgguf`.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from afs_mlx.core.errors import AfsError

type Array = np.ndarray[Any, Any]
type Floats = np.ndarray[Any, np.dtype[np.float32]]

KQUANTS = frozenset({GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K})
BLOCK = 32  # of Q8_0
SIGN = np.uint32(0x80000000)
BELOW_HALF = np.uint32(0x3EFFFFFF)  # the float32 before 0.5


def encode_rows(numbers: Floats, kind: GGMLQuantizationType) -> Array:
    """Finite numbers of shape (rows, columns) as bytes of shape (rows, bytes); columns fill whole blocks.

    Raises AfsError naming the extra where a K-quant is asked for without it.
    """
    return ENCODERS.get(kind, partial(_by_gguf, kind))(numbers).view(np.uint8).reshape(len(numbers), -1)


def require_kquants(file_type: str) -> None:
    """Raises AfsError when K-quants cannot be written here."""
    if importlib.util.find_spec("libgguf") is None:
        raise AfsError(
            f"{file_type} needs K-quants, which the optional package libgguf writes",
            "--type",
            "install the extra (pip install 'afs-mlx[kquants]'), or export as q8_0, q5_1 or q4_1",
        )


def _q8_0(numbers: Floats) -> Array:
    """Blocks of 32: a scale in f16, and each number / scale, rounded half away from zero, in 8 bits."""
    blocks = numbers.reshape(-1, BLOCK)
    # Of two bit patterns without a sign the larger is the larger number. Pairs of the whole array, five times over, are
    # several times faster than numpy's maximum of short rows.
    largest = np.abs(numbers).reshape(-1).view(np.int32)
    while largest.size > len(blocks):
        largest = np.maximum(largest[0::2], largest[1::2])
    scales = largest.view(np.float32) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    scaled = blocks * inverse[:, None]
    # Adding the number just below a half and cutting off rounds halves away from zero, and nothing else otherwise.
    scaled += ((scaled.view(np.uint32) & SIGN) | BELOW_HALF).view(np.float32)
    encoded = np.empty((len(blocks), 2 + BLOCK), dtype=np.uint8)
    encoded[:, :2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    encoded[:, 2:] = scaled.astype(np.int8).view(np.uint8)
    return encoded


def _bf16(numbers: Floats) -> Array:
    """The upper half of each float32, rounded to the nearest, halves to even."""
    bits = numbers.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)


def _f16(numbers: Floats) -> Array:
    return numbers.astype(np.float16)


def _f32(numbers: Floats) -> Array:
    return numbers


def _by_gguf(kind: GGMLQuantizationType, numbers: Floats) -> Array:
    encoded: Array = quantize(numbers, kind)
    return encoded


def _by_libgguf(kind: GGMLQuantizationType, numbers: Floats) -> Array:
    require_kquants(kind.name.lower())
    encoded: Array = importlib.import_module("libgguf").quantize_rows(numbers, int(kind))
    return encoded


ENCODERS: dict[GGMLQuantizationType, Callable[[Floats], Array]] = {
    GGMLQuantizationType.F32: _f32,
    GGMLQuantizationType.F16: _f16,
    GGMLQuantizationType.BF16: _bf16,
    GGMLQuantizationType.Q8_0: _q8_0,
    **{kind: partial(_by_libgguf, kind) for kind in KQUANTS},
}
