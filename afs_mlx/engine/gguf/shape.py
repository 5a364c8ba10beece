"""What config.json says about a model, checked, and the metadata keys it becomes. Reads no weights and no tokenizer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from gguf import GGUFWriter

from afs_mlx.core.errors import problems

INTEGERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
LLAMA3_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Keys that change the arithmetic and that no table here stands for: the only value under which they change nothing.
INERT = {"hidden_act": "silu", "use_sliding_window": False, "rope_traditional": False, "partial_rotary_factor": 1.0}
FIX = "export a model of the Qwen2 or Llama family as mlx-lm or transformers saved it"


@dataclass(frozen=True)
class Llama3Scaling:
    """Long-context rotation of Llama 3.1 and later: slow frequencies are divided by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float

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
class ModelShape:
    """The sizes of a decoder, in the spelling of the layout tables."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tied: bool

    def sizes(self) -> dict[str, int]:
        """The size of every axis that a layout table names."""
        return {
            "hidden": self.hidden,
            "intermediate": self.intermediate,
            "queries": self.heads * self.head_width,
            "keys": self.key_value_heads * self.head_width,
            "vocabulary": self.vocabulary,
        }

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the keys that llama.cpp needs to build the model."""
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.hidden)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.intermediate)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.key_value_heads)
        writer.add_layer_norm_rms_eps(self.norm_epsilon)
        writer.add_rope_freq_base(self.rope_theta)
        writer.add_rope_dimension_count(self.head_width)
        writer.add_vocab_size(self.vocabulary)
        if self.head_width * self.heads != self.hidden:
            writer.add_key_length(self.head_width)
            writer.add_value_length(self.head_width)


def read_shape(config: Mapping[str, Any], where: Path, *, scaled: bool) -> ModelShape:
    """The shape that config.json gives; `scaled` says whether the layout has a place for rotation factors.

    Raises AfsError listing every key that is missing, malformed, or changes the model in a way that is not exported.
    """
    found = [
        f"{key}: {config.get(key)!r} is not a positive whole number"
        for key in INTEGERS
        if not _is_count(config.get(key))
    ]
    found += [
        f"{key}: {config[key]!r} is not exported, only {inert!r}"
        for key, inert in INERT.items()
        if config.get(key, inert) not in (inert, None)
    ]
    if "full_attention" not in (types := set(config.get("layer_types") or ["full_attention"])) or len(types) > 1:
        found.append(f"layer_types: {', '.join(sorted(map(str, types)))} is not exported, only full_attention")
    epsilon = config.get("rms_norm_eps")
    if not _is_positive(epsilon):
        found.append(f"rms_norm_eps: {epsilon!r} is not a positive number")
    theta, scaling = _rope(config, found, scaled=scaled)
    heads, key_value_heads, head_width = _heads(config, found)
    if found:
        raise problems(found, "this model cannot be exported", str(where), FIX)
    return ModelShape(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=head_width,
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        norm_epsilon=float(config["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _heads(config: Mapping[str, Any], found: list[str]) -> tuple[int, int, int]:
    """Query heads, key and value heads, and the width of one; zeros and a line in `found` for what does not fit."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not _is_count(hidden) or not _is_count(heads):
        return 0, 0, 0  # both are in `found` already
    key_value_heads = config.get("num_key_value_heads") or heads
    if not _is_count(key_value_heads) or heads % key_value_heads:
        found.append(f"num_key_value_heads: {key_value_heads!r} does not divide num_attention_heads")
    head_width = config.get("head_dim") or hidden // heads
    if not _is_count(head_width) or head_width % 2:
        found.append(f"head_dim: {head_width!r} is not an even number")
    return heads, key_value_heads, head_width


def _rope(config: Mapping[str, Any], found: list[str], *, scaled: bool) -> tuple[float, Llama3Scaling | None]:
    """The rotation's base and scaling, from the keys of transformers 4 or the one of transformers 5."""
    newer = config.get("rope_parameters") or {}
    older = config.get("rope_scaling") or {}
    if not isinstance(newer, dict) or not isinstance(older, dict):
        found.append("rope_scaling or rope_parameters: not an object")
        return 0.0, None
    bases = {value for value in (config.get("rope_theta"), newer.get("rope_theta")) if value is not None}
    if len(bases) != 1 or not _is_positive(next(iter(bases))):
        # A default is never assumed: 10,000 for 1,000,000 loads well and answers nonsense.
        found.append(f"rope_theta: {' and '.join(map(str, sorted(bases, key=str))) or 'missing'}, expected one number")
        return 0.0, None
    scaling = older or newer
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    theta = float(next(iter(bases)))
    if kind == "default":
        return theta, None
    if kind != "llama3" or not scaled:
        known = "default, llama3" if scaled else "default"
        found.append(f"rope_scaling: kind {kind!r} is not exported for this model_type, only {known}")
        return theta, None
    wrong = [key for key in LLAMA3_NUMBERS if not _is_positive(scaling.get(key))]
    if wrong or scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        found.append(f"rope_scaling: {', '.join(wrong) or 'high_freq_factor'} is missing or out of range")
        return theta, None
    return theta, Llama3Scaling(**{key: float(scaling[key]) for key in LLAMA3_NUMBERS})


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
