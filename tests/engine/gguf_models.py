"""Model folders of every family that is exported, built in code from the tiny Qwen2; their weights are noise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.gguf.layouts import LAYOUTS
from afs_mlx.engine.gguf.shape import read_shape

CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
# What each family has and Qwen2 has not: wider heads, its own base of the rotation, its own pre-tokenizer.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 24, "attention_bias": False},
    "llama": {"head_dim": 24, "rope_theta": 10000.0, "attention_bias": False},
}


def build_tiny(
    folder: Path, family: str, *, pre: str = "", dtype: str = "F32", scale: float = 0.2, **changes: Any
) -> None:
    """A folder of `family` in two shards; `changes` are keys of config.json, `pre` another pre-tokenizer."""
    build_tiny_qwen2(folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": family, "architectures": [CLASSES[family]]} | FAMILIES[family] | changes
    (folder / "config.json").write_text(json.dumps(config))
    if family == "llama":
        edit(
            folder / "tokenizer_config.json",
            lambda settings: settings.update(tokenizer_class="PreTrainedTokenizerFast"),
        )
    edit(
        folder / "tokenizer.json",
        lambda rules: give_pre_tokenizer(rules, pre or {"llama": "llama-bpe"}.get(family, "")),
    )

    shape = read_shape(config, folder, scaled=LAYOUTS[family].scaled)
    rng = np.random.default_rng(7)
    weights = {
        name: (scale * rng.standard_normal(target.shape) + (name.endswith("norm.weight"))).astype(np.float32)
        for name, (entry, target) in LAYOUTS[family].targets(shape).items()
        if entry.need == "always"
        or (entry.need == "untied" and not shape.tied)
        or (entry.need == "if present" and config["attention_bias"] and "self_attn" in name)
    }
    weights["model.embed_tokens.weight"][650:] *= np.float32(0.05)  # so that padding is never the answer
    write_shards(folder, weights, dtype)


def write_shards(folder: Path, weights: dict[str, np.ndarray], dtype: str = "F32") -> None:
    """Every other tensor in the second file."""
    shards = list(weights)[::2], list(weights)[1::2]
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    stored = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16}[dtype]
    for file, names in zip(files, shards, strict=True):
        arrays = {name: mx.array(weights[name]).astype(stored) for name in names}
        mx.save_safetensors(str(folder / file), arrays, {"format": "mlx"})
    index = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def give_pre_tokenizer(rules: dict[str, Any], pre: str) -> None:
    """Turn the tiny tokenizer's rules into another family's."""
    if pre == "smollm":
        rules["normalizer"] = None
        rules["pre_tokenizer"]["pretokenizers"] = [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]
    if pre == "llama-bpe":
        split = rules["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        split["Regex"] = split["Regex"].replace(r"\p{N}|", r"\p{N}{1,3}|")
        rules["normalizer"] = None
        rules["model"]["ignore_merges"] = True


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


# The models of tests/golden/gguf/golden.json. In between: every layout, stored in float32 and bfloat16, tied and not.
GOLDEN_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-qwen2": ("", {}),  # the product's own, seed 0
    "qwen3": ("qwen3", {}),
    "llama-bf16-untied": ("llama", {"dtype": "BF16", "tie_word_embeddings": False}),
    "llama-f16-biases-llama3": (
        "llama",
        {
            "dtype": "F16",
            "attention_bias": True,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            | {"original_max_position_embeddings": 8192},
        },
    ),
}
KQUANT_MODEL = "wide-qwen2"  # rows of 256 and more, which K-quants need
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "scale": 0.05}


def build_golden(folder: Path, name: str) -> None:
    """One of them by name."""
    family, changes = GOLDEN_MODELS.get(name, ("qwen2", WIDE))
    if family:
        build_tiny(folder, family, **changes)
    else:
        build_tiny_qwen2(folder, seed=0)
