"""What config.json says about a model, checked, and the metadata keys it becomes. Reads no weights and no tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter

from afs_mlx.core.errors import problems
from afs_mlx.engine.gguf.checks import is_count, is_positive
from afs_mlx.engine.gguf.scaling import Scaling, read_rope

INTEGERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
# Keys that change the arithmetic and that no table here stands for: the only value under which they change nothing.
INERT = {"hidden_act": "silu", "use_sliding_window": False, "rope_traditional": False, "partial_rotary_factor": 1.0}
MOST_LAYERS = 1024  # more than any model has; a row of the table is made for each before the weights are looked at
FIX = "export a model of the Qwen2, Qwen3 or Llama family as mlx-lm or transformers saved it"


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
    rope_scaling: Scaling | None
    tied: bool

    def sizes(self) -> dict[str, int]:
        """The size of every axis that a layout table names."""
        return {
            "hidden": self.hidden,
            "intermediate": self.intermediate,
            "queries": self.heads * self.head_width,
            "keys": self.key_value_heads * self.head_width,
            "head": self.head_width,
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
        if self.rope_scaling is not None:
            self.rope_scaling.add_to(writer)
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
        if not is_count(config.get(key))
    ]
    found += [
        f"{key}: {config[key]!r} is not exported, only {inert!r}"
        for key, inert in INERT.items()
        if config.get(key, inert) not in (inert, None)
    ]
    if is_count(config.get("num_hidden_layers")) and config["num_hidden_layers"] > MOST_LAYERS:
        found.append(f"num_hidden_layers: {config['num_hidden_layers']} is beyond {MOST_LAYERS}")
    kinds = config.get("layer_types") or ["full_attention"]
    if others := sorted(
        {str(kind) for kind in kinds} - {"full_attention"} if isinstance(kinds, list) else {str(kinds)}
    ):
        found.append(f"layer_types: {', '.join(others)} is not exported, only full_attention")
    epsilon = config.get("rms_norm_eps")
    if not is_positive(epsilon):
        found.append(f"rms_norm_eps: {epsilon!r} is not a positive number")
    theta, scaling = read_rope(config, found, factors=scaled)
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
    if not is_count(hidden) or not is_count(heads):
        return 0, 0, 0  # both are in `found` already
    key_value_heads = config.get("num_key_value_heads") or heads
    if not is_count(key_value_heads) or heads % key_value_heads:
        found.append(f"num_key_value_heads: {key_value_heads!r} does not divide num_attention_heads")
    head_width = config.get("head_dim") or hidden // heads
    if not is_count(head_width) or head_width % 2:
        found.append(f"head_dim: {head_width!r} is not an even number")
    return heads, key_value_heads, head_width
