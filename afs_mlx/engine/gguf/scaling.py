"""Rotation stretched for long contexts: what config.json says, and the keys or factors it becomes.

Each kind is held against mlx-lm's `rope_utils`, which is what trained and evaluated the model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from afs_mlx.engine.gguf.checks import is_count, is_positive

LLAMA3_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Keys of `yarn`, and the only value under which llama.cpp and mlx-lm compute the same: llama.cpp reads the betas for a
# few other architectures only, mlx-lm ignores the rest.
YARN_INERT = {"beta_fast": 32, "beta_slow": 1, "attention_factor": None, "truncate": True}
MAGNITUDES = {"mscale": 1.0, "mscale_all_dim": 0.0}


@dataclass(frozen=True)
class Llama3Scaling:
    """Long-context rotation of Llama 3.1 and later: slow frequencies are divided by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float

    def add_to(self, writer: GGUFWriter) -> None:
        """Nothing: its factors are a tensor."""

    def factors(self, head_width: int, theta: float) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The divisor of each of the head_width / 2 frequencies; 1 for fast ones, `factor` for slow ones.

        Source: Llama 3.1's reference code; `Llama3RoPE` in mlx-lm multiplies wavelengths by the same numbers.
        """
        result = np.ones(head_width // 2, dtype=np.float32)
        for index in range(head_width // 2):
            wavelength = 2 * math.pi * theta ** (2 * index / head_width)
            turns = self.original_max_position_embeddings / wavelength
            smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            smooth = min(1.0, max(0.0, smooth))
            result[index] = 1 / ((1 - smooth) / self.factor + smooth)
        return result


@dataclass(frozen=True)
class LinearScaling:
    """Every position is divided by `factor`."""

    factor: float

    def add_to(self, writer: GGUFWriter) -> None:
        """Write its keys."""
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(self.factor)


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: fast frequencies stay, slow ones are divided by `factor`, and q and k grow by 0.1 ln(factor) + 1 each.

    `magnitude` is that growth as config.json states it, over llama.cpp's own.
    """

    factor: float
    original_context: int
    magnitude: float

    def add_to(self, writer: GGUFWriter) -> None:
        """Write its keys."""
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(self.factor)
        writer.add_rope_scaling_orig_ctx_len(self.original_context)
        if self.magnitude != 1.0:
            writer.add_rope_scaling_attn_factors(self.magnitude)


type Scaling = Llama3Scaling | LinearScaling | YarnScaling


def read_rope(config: Mapping[str, Any], found: list[str], *, factors: bool) -> tuple[float, Scaling | None]:
    """The rotation's base and scaling, from the keys of transformers 4 or the one of transformers 5.

    `factors` says whether the architecture reads a tensor of factors. Adds a line to `found` for what does not fit.
    """
    newer = config.get("rope_parameters") or {}
    older = config.get("rope_scaling") or {}
    if not isinstance(newer, dict) or not isinstance(older, dict):
        found.append("rope_scaling or rope_parameters: not an object")
        return 0.0, None
    bases = [value for value in (config.get("rope_theta"), newer.get("rope_theta")) if value is not None]
    if not bases or not all(map(is_positive, bases)) or len(set(bases)) > 1:
        # A default is never assumed: 10,000 for 1,000,000 loads well and answers nonsense.
        found.append(f"rope_theta: {' and '.join(sorted(set(map(str, bases)))) or 'missing'}, expected one number")
        return 0.0, None
    theta = float(bases[0])
    kinds = {
        value if isinstance(value, str) else str(value)
        for part in (older, newer)
        for key in ("type", "rope_type")
        if (value := part.get(key)) is not None
    }
    if len(kinds) > 1:
        found.append(f"rope_scaling: {' and '.join(map(repr, sorted(kinds, key=str)))}, expected one kind")
        return theta, None
    kind = next(iter(kinds), "default")
    readers = {"linear": _linear, "yarn": _yarn, **({"llama3": _llama3} if factors else {})}
    if kind == "default":
        return theta, None
    if kind not in readers:
        known = ", ".join(("default", *readers))
        found.append(f"rope_scaling: kind {kind!r} is not exported for this model_type, only {known}")
        return theta, None
    return theta, readers[kind](older or newer, found)


def _linear(scaling: Mapping[str, Any], found: list[str]) -> LinearScaling | None:
    if not is_positive(scaling.get("factor")):
        found.append("rope_scaling: factor is missing or out of range")
        return None
    return LinearScaling(float(scaling["factor"]))


def _llama3(scaling: Mapping[str, Any], found: list[str]) -> Llama3Scaling | None:
    wrong = [key for key in LLAMA3_NUMBERS if not is_positive(scaling.get(key))]
    if wrong or scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        found.append(f"rope_scaling: {', '.join(wrong) or 'high_freq_factor'} is missing or out of range")
        return None
    return Llama3Scaling(**{key: float(scaling[key]) for key in LLAMA3_NUMBERS})


def _yarn(scaling: Mapping[str, Any], found: list[str]) -> YarnScaling | None:
    """The defaults of mscale and mscale_all_dim are mlx-lm's; they give llama.cpp's own growth."""
    # mlx-lm would assume 4096 and transformers max_position_embeddings: without the number nobody can say.
    wrong = [] if is_count(scaling.get("original_max_position_embeddings")) else ["original_max_position_embeddings"]
    wrong += [] if is_positive(scaling.get("factor")) and scaling["factor"] >= 1 else ["factor"]
    scales = [default if (value := scaling.get(key)) is None else value for key, default in MAGNITUDES.items()]
    wrong += [key for key, value in zip(MAGNITUDES, scales, strict=True) if value != 0 and not is_positive(value)]
    if wrong:
        found.append(f"rope_scaling: {', '.join(wrong)} is missing or out of range")
    fixed = [key for key, inert in YARN_INERT.items() if scaling.get(key, inert) not in (inert, None)]
    found += [f"rope_scaling: {key} {scaling[key]!r} is not exported, only {YARN_INERT[key]!r}" for key in fixed]
    if wrong or fixed:
        return None
    factor = float(scaling["factor"])
    growth = [0.1 * scale * math.log(factor) + 1.0 for scale in (*scales, 1.0)]
    return YarnScaling(factor, scaling["original_max_position_embeddings"], growth[0] / growth[1] / growth[2])
