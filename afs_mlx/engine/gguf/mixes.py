"""Which type each tensor of a file gets, by table. Knows nothing of how numbers become bytes.

The mixes and the fallbacks are llama.cpp's (`llama-quant.cpp`), so that a file is what its name promises elsewhere.
One difference: llama.cpp gives the output of the older 4- and 5-bit types Q6_K, which needs the extra; here it gets
Q8_0, so that these types need no more than the core.
"""

from dataclasses import dataclass

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from afs_mlx.schema.gguf import GgufType

F16_LIMIT = 65504.0
LLAMA_70B_LAYERS = 80  # there the values are so few that llama.cpp spends 5 bits on them


@dataclass(frozen=True)
class Kind:
    """What a file type means: general.file_type, and the type of matrices.

    `output` is that of `output.weight`, or of the embedding where that is the output, too; `sensitive` that of the
    value and down projections in the layers where `gets_more_bits`. Without them all matrices get `tensor`.
    """

    tensor: GGMLQuantizationType
    file: LlamaFileType
    output: GGMLQuantizationType | None = None
    sensitive: GGMLQuantizationType | None = None

    @property
    def limit(self) -> float:
        """The largest number that a matrix of this type holds."""
        return LIMITS[self.tensor]


_T, _F = GGMLQuantizationType, LlamaFileType
KINDS: dict[GgufType, Kind] = {
    "f32": Kind(_T.F32, _F.ALL_F32),
    "f16": Kind(_T.F16, _F.MOSTLY_F16),
    "bf16": Kind(_T.BF16, _F.MOSTLY_BF16),
    "q8_0": Kind(_T.Q8_0, _F.MOSTLY_Q8_0),
    "q6_k": Kind(_T.Q6_K, _F.MOSTLY_Q6_K),
    "q5_k_m": Kind(_T.Q5_K, _F.MOSTLY_Q5_K_M, output=_T.Q6_K, sensitive=_T.Q6_K),
    "q5_1": Kind(_T.Q5_1, _F.MOSTLY_Q5_1, output=_T.Q8_0),
    "q5_0": Kind(_T.Q5_0, _F.MOSTLY_Q5_0, output=_T.Q8_0),
    "q4_k_m": Kind(_T.Q4_K, _F.MOSTLY_Q4_K_M, output=_T.Q6_K, sensitive=_T.Q6_K),
    "q4_1": Kind(_T.Q4_1, _F.MOSTLY_Q4_1, output=_T.Q8_0),
    "q4_0": Kind(_T.Q4_0, _F.MOSTLY_Q4_0, output=_T.Q8_0),
}

# Where a row does not fill the blocks of its type; what then still does not fit becomes F16.
FALLBACKS = {_T.Q4_K: _T.Q5_0, _T.Q5_K: _T.Q5_1, _T.Q6_K: _T.Q8_0}

# The largest number that each type holds: its scale, or its offset, is an f16.
LIMITS: dict[GGMLQuantizationType, float] = {
    _T.F32: float(np.finfo(np.float32).max),
    _T.F16: F16_LIMIT,
    _T.BF16: float(np.uint32(0x7F7F0000).view(np.float32)),
    _T.Q8_0: F16_LIMIT * 127,
    _T.Q5_1: F16_LIMIT,
    _T.Q5_0: F16_LIMIT * 16,
    _T.Q4_1: F16_LIMIT,
    _T.Q4_0: F16_LIMIT * 8,
    _T.Q6_K: F16_LIMIT * 63,  # of the scales; a safe bound for all three
    _T.Q5_K: F16_LIMIT * 63,
    _T.Q4_K: F16_LIMIT * 63,
}


def type_of(name: str, shape: tuple[int, ...], kind: Kind, *, layers: int, tied: bool) -> GGMLQuantizationType:
    """The type of one tensor by its GGUF name. Vectors stay float32, as llama.cpp wants norms and biases."""
    if len(shape) == 1:
        return _T.F32
    wanted = _wanted(name, kind, layers, tied)
    for chosen in (wanted, FALLBACKS.get(wanted, _T.F16)):
        if shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0] == 0:
            return chosen
    return _T.F16


def gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's choice of layers that lose most: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _wanted(name: str, kind: Kind, layers: int, tied: bool) -> GGMLQuantizationType:
    """The type before it is known whether the rows fit."""
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return kind.output or kind.tensor
    if kind.sensitive is not None and name.endswith((".attn_v.weight", ".ffn_down.weight")):
        if gets_more_bits(int(name.split(".")[1]), layers):
            return kind.sensitive
        if layers == LLAMA_70B_LAYERS and kind.tensor is _T.Q4_K and "attn_v" in name:
            return _T.Q5_K
    return kind.tensor
