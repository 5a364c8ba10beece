"""exp and what is made of it, for mlx on a CPU, where its own exp takes nine times a multiplication's time or more.

2^f on [-1/2, 1/2] is a polynomial of degree 6 (Chebyshev fit, relative error 6e-9); the whole part of the exponent
goes straight into the float's bits. x · log2 e is rounded to float32, so the relative error against float64 grows with
|x|: below 1.5e-7 up to 1, 1.1e-6 up to 22, 4e-6 up to the ends (tests). float32 only.
"""

import mlx.core as mx

from afs_mlx.engine.training.compute.custom import with_gradient

LOG2_E = 1.4426950408889634
LOWEST, HIGHEST = -87.3, 88.3  # below, exp is a denormal; above, infinity
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
    scaled = mx.clip(x, LOWEST, HIGHEST) * LOG2_E
    shifted = scaled + SHIFT
    rest = scaled - (shifted - SHIFT)
    power = COEFFICIENTS[-1] * rest + COEFFICIENTS[-2]
    for coefficient in COEFFICIENTS[-3::-1]:
        power = power * rest + coefficient
    bits = mx.left_shift(mx.view(shifted, mx.int32) + (127 - SHIFT_BITS), 23)
    return power * mx.view(bits, mx.float32)


def _swiglu(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    """silu(gate) · up and, for the gradient, sigmoid(gate)."""
    sigmoid = 1.0 / (1.0 + exp(-gate))
    return gate * sigmoid * up, sigmoid


def _swiglu_gradient(
    primals: tuple[mx.array, mx.array], cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]
) -> tuple[mx.array, mx.array]:
    (gate, up), cotangent, sigmoid = primals, cotangents[0], outputs[1]
    silu = gate * sigmoid
    # d silu = sigmoid · (1 + gate · (1 - sigmoid)) = sigmoid + silu - silu · sigmoid
    return cotangent * up * (sigmoid + silu - silu * sigmoid), cotangent * silu


swiglu = with_gradient(_swiglu, _swiglu_gradient)


def softmax_parts(scores: mx.array, *, fast_exp: bool = True) -> tuple[mx.array, mx.array, mx.array]:
    """For scores (…, n): e^(scores - max), its sum and the max, both (…, 1)."""
    highest = mx.max(scores, axis=-1, keepdims=True)
    powers = exp(scores - highest) if fast_exp else mx.exp(scores - highest)
    return powers, mx.sum(powers, axis=-1, keepdims=True), highest
