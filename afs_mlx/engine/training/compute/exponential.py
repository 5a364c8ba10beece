"""exp and what is made of it, for mlx on a CPU, where its own exp takes nine times a multiplication's time or more.

2^f on [-1/2, 1/2] is a polynomial of degree 6 (Chebyshev fit, relative error 6e-9); the whole part of the exponent
goes straight into the float's bits. x · log2 e is rounded to float32, so the relative error against float64 grows with
|x|: below 1.5e-7 up to 1, 1.1e-6 up to 22, 4e-6 up to the ends (tests). float32 only.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from afs_mlx.engine.training.compute.custom import with_gradient

LOG2_E = 1.4426950408889634
LOWEST, HIGHEST = -87.3, 88.3  # below, exp is a denormal; above, infinity
SLICE = 1 << 17  # numbers; 2^16 to 2^18 are alike on the CPUs tried, more is slower and takes more memory
SHIFT = 12582912.0  # 1.5 · 2^23: adding it leaves the rounded whole number in the low bits
SHIFT_BITS = 0x4B400000
# c0 + c1 f + … of 2^f.
COEFFICIENTS = (
    1.0,
    0.693147200,
    0.240226511,
    5.55034067e-2,
    9.61803993e-3,
    1.33952854e-3,
    1.54653179e-4,
)


def exp(x: mx.array) -> mx.array:
    """e^x of a float32 array; x below -87.3 counts as that, above 88.3 as that."""
    return _in_slices(_exp, x)[0]


def _in_slices(function: Callable[..., Any], *arrays: mx.array) -> list[mx.array]:
    """The results of a function of single numbers, over arrays of one shape, SLICE of their numbers at a time.

    A kernel's output then fits into a cache, and the ten that mlx allocates ahead of a slow one are small.
    """
    shape, size = arrays[0].shape, arrays[0].size
    if size <= SLICE:
        return _listed(function(*arrays))
    flat = [array.reshape(-1) for array in arrays]
    parts = [_listed(function(*(array[start : start + SLICE] for array in flat))) for start in range(0, size, SLICE)]
    return [mx.concatenate(list(each)).reshape(shape) for each in zip(*parts, strict=True)]


def _listed(found: mx.array | tuple[mx.array, ...]) -> list[mx.array]:
    return [found] if isinstance(found, mx.array) else list(found)


def _exp(x: mx.array) -> mx.array:
    scaled = mx.clip(x, LOWEST, HIGHEST) * LOG2_E
    shifted = scaled + SHIFT
    rest = scaled - (shifted - SHIFT)
    power = COEFFICIENTS[-1] * rest + COEFFICIENTS[-2]
    for coefficient in COEFFICIENTS[-3::-1]:
        power = power * rest + coefficient
    bits = mx.left_shift(mx.view(shifted, mx.int32) + (127 - SHIFT_BITS), 23)
    return power * mx.view(bits, mx.float32)


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up."""
    return _in_slices(lambda gate, up: gate / (1.0 + _exp(-gate)) * up, gate, up)[0]


def _swiglu_gradient(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    gate, up = primals
    # sigmoid is made anew: held since the forward pass it would be a quarter of all that a block holds.
    late = mx.depends([gate], [cotangent])[0]
    towards_gate, towards_up = _in_slices(_swiglu_slopes, late, up, cotangent)
    return towards_gate, towards_up


def _swiglu_slopes(gate: mx.array, up: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = 1.0 / (1.0 + _exp(-gate))
    silu = gate * sigmoid
    # d silu = sigmoid · (1 + gate · (1 - sigmoid)) = sigmoid + silu - silu · sigmoid
    return cotangent * up * (sigmoid + silu - silu * sigmoid), cotangent * silu


swiglu = with_gradient(_swiglu, _swiglu_gradient)


def softmax_parts(scores: mx.array, *, fast_exp: bool = True) -> tuple[mx.array, mx.array, mx.array]:
    """For scores (…, n): e^(scores - max), its sum and the max, both (…, 1)."""
    highest = mx.max(scores, axis=-1, keepdims=True)
    powers = exp(scores - highest) if fast_exp else mx.exp(scores - highest)
    return powers, mx.sum(powers, axis=-1, keepdims=True), highest
