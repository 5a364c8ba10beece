"""Which tensor goes where: Hugging Face names to GGUF names, by table. Knows nothing of numbers or files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from afs_mlx.core.errors import AfsError, problems
from afs_mlx.engine.gguf.shape import ModelShape

FIX = "check that config.json and the weights belong together, or download the model again"
ROPE_FACTORS = "rope_freqs.weight"  # made from config.json, no model folder has it


@dataclass(frozen=True)
class Entry:
    """One tensor: its GGUF name, its axes as `ModelShape.sizes` names them, and for q and k whose heads they are.

    `need` says when it has to be there: in every model, never (it may be), or only when the output is not tied.
    """

    gguf: str
    axes: tuple[str, ...]
    rotates: Literal["", "heads", "key_value_heads"] = ""
    need: Literal["always", "if present", "untied"] = "always"


@dataclass(frozen=True)
class Target:
    """Where one tensor of the model folder goes. `rotating_heads` is 0 where rows keep their order."""

    gguf: str
    shape: tuple[int, ...]
    rotating_heads: int


OUTER = {
    "model.embed_tokens.weight": Entry("token_embd.weight", ("vocabulary", "hidden")),
    "model.norm.weight": Entry("output_norm.weight", ("hidden",)),
    "lm_head.weight": Entry("output.weight", ("vocabulary", "hidden"), need="untied"),
}

# {} is the layer, on both sides.
LAYER = {
    "model.layers.{}.input_layernorm.weight": Entry("blk.{}.attn_norm.weight", ("hidden",)),
    "model.layers.{}.self_attn.q_proj.weight": Entry("blk.{}.attn_q.weight", ("queries", "hidden"), "heads"),
    "model.layers.{}.self_attn.k_proj.weight": Entry("blk.{}.attn_k.weight", ("keys", "hidden"), "key_value_heads"),
    "model.layers.{}.self_attn.v_proj.weight": Entry("blk.{}.attn_v.weight", ("keys", "hidden")),
    "model.layers.{}.self_attn.o_proj.weight": Entry("blk.{}.attn_output.weight", ("hidden", "queries")),
    "model.layers.{}.post_attention_layernorm.weight": Entry("blk.{}.ffn_norm.weight", ("hidden",)),
    "model.layers.{}.mlp.gate_proj.weight": Entry("blk.{}.ffn_gate.weight", ("intermediate", "hidden")),
    "model.layers.{}.mlp.up_proj.weight": Entry("blk.{}.ffn_up.weight", ("intermediate", "hidden")),
    "model.layers.{}.mlp.down_proj.weight": Entry("blk.{}.ffn_down.weight", ("hidden", "intermediate")),
}

QWEN2_BIASES = {
    "model.layers.{}.self_attn.q_proj.bias": Entry("blk.{}.attn_q.bias", ("queries",), "heads"),
    "model.layers.{}.self_attn.k_proj.bias": Entry("blk.{}.attn_k.bias", ("keys",), "key_value_heads"),
    "model.layers.{}.self_attn.v_proj.bias": Entry("blk.{}.attn_v.bias", ("keys",)),
}

# Each head of q and k is normalised before it rotates, with one weight for all heads.
QWEN3_NORMS = {
    "model.layers.{}.self_attn.q_norm.weight": Entry("blk.{}.attn_q_norm.weight", ("head",)),
    "model.layers.{}.self_attn.k_norm.weight": Entry("blk.{}.attn_k_norm.weight", ("head",)),
}

# `attention_bias` and `mlp_bias` of a Llama config; the few models that set them are otherwise plain Llamas.
LLAMA_BIASES = {
    "model.layers.{}.self_attn.q_proj.bias": Entry("blk.{}.attn_q.bias", ("queries",), "heads", "if present"),
    "model.layers.{}.self_attn.k_proj.bias": Entry("blk.{}.attn_k.bias", ("keys",), "key_value_heads", "if present"),
    "model.layers.{}.self_attn.v_proj.bias": Entry("blk.{}.attn_v.bias", ("keys",), need="if present"),
    "model.layers.{}.self_attn.o_proj.bias": Entry("blk.{}.attn_output.bias", ("hidden",), need="if present"),
    "model.layers.{}.mlp.gate_proj.bias": Entry("blk.{}.ffn_gate.bias", ("intermediate",), need="if present"),
    "model.layers.{}.mlp.up_proj.bias": Entry("blk.{}.ffn_up.bias", ("intermediate",), need="if present"),
    "model.layers.{}.mlp.down_proj.bias": Entry("blk.{}.ffn_down.bias", ("hidden",), need="if present"),
}

# Buffers that old checkpoints carry; every loader computes them from config.json.
IGNORED = ("model.layers.{}.self_attn.rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Layout:
    """One architecture of llama.cpp.

    `interleaved`: it rotates neighbouring rows, where Hugging Face rotates the two halves of a head, so q and k are
    reordered. `scaled`: its graph reads the factors of `rope_freqs.weight`.
    """

    architecture: str
    layer: Mapping[str, Entry]
    interleaved: bool
    scaled: bool

    def targets(self, shape: ModelShape) -> dict[str, tuple[Entry, Target]]:
        """Every Hugging Face name of a model of this shape, in file order, with where it goes."""
        names = {name: (entry, entry.gguf) for name, entry in OUTER.items()}
        for number in range(shape.layers):
            for name, entry in self.layer.items():
                names[name.format(number)] = (entry, entry.gguf.format(number))
        sizes = shape.sizes()
        return {
            name: (
                entry,
                Target(
                    gguf,
                    tuple(sizes[axis] for axis in entry.axes),
                    getattr(shape, entry.rotates) if entry.rotates and self.interleaved else 0,
                ),
            )
            for name, (entry, gguf) in names.items()
        }


LAYOUTS = {
    "qwen2": Layout("qwen2", {**LAYER, **QWEN2_BIASES}, interleaved=False, scaled=False),
    "qwen3": Layout("qwen3", {**LAYER, **QWEN3_NORMS}, interleaved=False, scaled=False),
    "llama": Layout("llama", {**LAYER, **LLAMA_BIASES}, interleaved=True, scaled=True),
}


def layout_of(config: Mapping[str, Any], where: Path) -> Layout:
    """The layout of a model by its `model_type`; raises AfsError naming one that is not in the table."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in LAYOUTS:
        raise AfsError(
            f"model_type {model_type!r} is not exported to GGUF", str(where), f"known: {', '.join(sorted(LAYOUTS))}"
        )
    return LAYOUTS[model_type]


def match_names(
    layout: Layout, shape: ModelShape, present: Mapping[str, tuple[int, ...]], where: Path
) -> dict[str, Target]:
    """The tensors to write, in file order, from the names and shapes that the folder holds.

    Raises AfsError listing every name that is unknown or missing and every shape that config.json does not give.
    """
    targets = layout.targets(shape)
    dropped = set(_ignored(shape.layers)) | ({"lm_head.weight"} if shape.tied else set())
    unknown = [name for name in present if name not in targets and name not in dropped]
    found = [f"{name}: no such tensor in a {layout.architecture} model" for name in unknown]
    chosen: dict[str, Target] = {}
    for name, (entry, target) in targets.items():
        needed = entry.need == "always" or (entry.need == "untied" and not shape.tied)
        if name not in present:
            found += [f"{name}: missing"] if needed else []
        elif name not in dropped:
            if present[name] != target.shape:
                found.append(f"{name}: shape {list(present[name])}, expected {list(target.shape)}")
            chosen[name] = target
    if found:
        raise problems(found, "the weights do not fit config.json", str(where), FIX)
    return chosen


def _ignored(layers: int) -> Iterable[str]:
    return (name.format(number) for name in IGNORED for number in range(layers))
