"""How far llama.cpp may be from mlx in float32, for each type of file, and how the numbers were found."""

from dataclasses import dataclass

from afs_mlx.schema.gguf import GgufType

TOP = 20  # the tokens that are compared at each place: those that mlx finds most probable


@dataclass(frozen=True)
class Tolerance:
    """Limits of |Δ log p| over the TOP tokens of every place: their mean and the largest. `greedy`: asserted."""

    mean: float
    largest: float
    greedy: bool = False


# Three times the larger of what two bases showed, rounded up; f32 more, since only the order of additions differs and a
# deep model has more of them. Measured with --thorough (20 prompts, 80 places) on x86-64, tiny-qwen2 and smollm2-135m:
#
#              tiny-qwen2         smollm2-135m
#              mean    largest    mean    largest
#     f32      1.6e-6  1.2e-5     1.7e-5  1.3e-4
#     f16      0.0019  0.010      0.0042  0.041
#     bf16     0.014   0.085      0.028   0.21
#     q8_0     0.048   0.29       0.12    1.9
#     q6_k     0.048   0.29       0.20    1.4     (tiny-qwen2's rows are too short for K-quants: Q8_0, Q5_1, Q5_0)
#     q5_k_m   0.22    1.2        0.54    3.4
#     q5_1     0.21    1.1        0.63    4.2
#     q5_0     0.26    1.6        0.57    6.2
#     q4_k_m   0.25    1.6        0.52    3.8
#     q4_1     0.46    3.1        0.11    1.2     (smollm2-135m was q4_1 when it was published)
#     q4_0     0.52    3.9        1.1     6.9
#
# Both are sensitive: one is noise, the other small. llama.cpp rounds what goes into a product, too: to f16 and bf16 for
# those types, to 8 bits for the quantised ones.
TOLERANCES: dict[GgufType, Tolerance] = {
    "f32": Tolerance(1e-4, 1e-3, greedy=True),
    "f16": Tolerance(0.015, 0.15, greedy=True),
    "bf16": Tolerance(0.09, 0.7, greedy=True),
    "q8_0": Tolerance(0.5, 6),
    "q6_k": Tolerance(0.6, 5),
    "q5_k_m": Tolerance(1.7, 11),
    "q5_1": Tolerance(2, 13),
    "q5_0": Tolerance(2, 19),
    "q4_k_m": Tolerance(1.6, 12),
    "q4_1": Tolerance(1.5, 10),
    "q4_0": Tolerance(3.5, 21),
}
