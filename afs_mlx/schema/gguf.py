"""The types of a GGUF file by name: what each means and how large it is. Knows nothing of how they are written."""

from dataclasses import dataclass
from typing import Literal

type GgufType = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0"]


@dataclass(frozen=True)
class GgufMeaning:
    """One line for a person, and the bits per weight of a large model; vectors and odd rows take more."""

    text: str
    bits_per_weight: float
    needs_kquants: bool = False


# The bits are those of a Qwen2.5 of 3 billion: some types keep the output or the most sensitive tensors in more.
GGUF_MEANINGS: dict[GgufType, GgufMeaning] = {
    "f32": GgufMeaning("every number as it was computed; for comparing, not for use", 32.0),
    "f16": GgufMeaning("half precision; numbers beyond 65504 are refused", 16.0),
    "bf16": GgufMeaning("the precision most models are published in", 16.0),
    "q8_0": GgufMeaning("8 bits; hardly to be told from f16", 8.5),
    "q6_k": GgufMeaning("6 bits; very near to q8_0", 6.5625, True),
    "q5_k_m": GgufMeaning("5 bits, the most sensitive tensors 6; small loss", 5.75, True),
    "q5_1": GgufMeaning("5 bits with an offset; an older form, no extra needed", 6.25),
    "q5_0": GgufMeaning("5 bits; an older form, no extra needed", 5.8),
    "q4_k_m": GgufMeaning("4 bits, the most sensitive tensors 6; the usual choice where memory is short", 4.99, True),
    "q4_1": GgufMeaning("4 bits with an offset; an older form, no extra needed", 5.36),
    "q4_0": GgufMeaning("4 bits; an older form with the largest loss here", 4.9),
}
GGUF_TYPES: tuple[str, ...] = tuple(GGUF_MEANINGS)
