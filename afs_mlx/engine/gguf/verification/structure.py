"""The file re-read: what it says about the model, and which tensors it has, against the folder it was made from.

Deliberately not through the tables that wrote it: a mistake there would be made twice.
"""

import math
from collections.abc import Mapping
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from afs_mlx.engine.gguf.mixes import KINDS, type_of
from afs_mlx.engine.gguf.verification.opened import ROPE_FACTORS, Opened
from afs_mlx.schema.gguf import GgufType
from afs_mlx.schema.verification import Check

SHOWN = 6
RELATIVE = 1e-6  # the file's floats are float32

# A key of config.json → the key of the file, below the architecture's name.
KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}


def check_structure(opened: Opened, tokenizer: TokenizerWrapper, file_type: GgufType) -> Check:
    """Every tensor there with its shape and type, and every key that changes what a program makes of them."""
    found = [*_tensors(opened, file_type), *_metadata(opened, file_type), *_vocabulary(opened, tokenizer)]
    figures: dict[str, float | int | str] = {"tensors": len(opened.tensors), "keys": len(opened.fields)}
    if not found:
        return Check(name="structure", status="passed", figures=figures)
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return Check(name="structure", status="failed", reason="; ".join(found[:SHOWN]) + more, figures=figures)


def _tensors(opened: Opened, file_type: GgufType) -> list[str]:
    scaling = opened.config.get("rope_scaling") or opened.config.get("rope_parameters") or {}
    factors = {ROPE_FACTORS} if (scaling.get("rope_type") or scaling.get("type")) == "llama3" else set()
    expected = opened.sources.keys() | factors
    found = [f"{name}: missing" for name in sorted(expected - opened.tensors.keys())]
    found += [f"{name}: not in the model folder" for name in sorted(opened.tensors.keys() - expected)]
    layers = int(opened.config["num_hidden_layers"])
    for name in sorted(opened.sources.keys() & opened.tensors.keys()):
        tensor, source = opened.tensors[name], opened.sources[name]
        if tensor.shape != source.shape:
            found.append(f"{name}: shape {list(tensor.shape)}, the model folder has {list(source.shape)}")
            continue
        kind = type_of(name, tensor.shape, KINDS[file_type], layers=layers, tied=opened.tied)
        if tensor.type != kind:
            found.append(f"{name}: type {tensor.type.name}, {kind.name} is due")
    return found


def _metadata(opened: Opened, file_type: GgufType) -> list[str]:
    config, architecture = opened.config, opened.architecture
    heads = int(config["num_attention_heads"])
    values: dict[str, Any] = {"num_key_value_heads": heads, **{k: v for k, v in config.items() if v is not None}}
    wanted: dict[str, Any] = {f"{architecture}.{key}": values[name] for name, key in KEYS.items()}
    parameters = config.get("rope_parameters") or {}
    wanted[f"{architecture}.rope.freq_base"] = config.get("rope_theta") or parameters.get("rope_theta")
    wanted |= {"general.architecture": architecture, "general.file_type": int(KINDS[file_type].file)}
    wanted["tokenizer.ggml.model"] = "gpt2"
    found = []
    for key, value in wanted.items():
        if not _equal(opened.fields.get(key), value):
            found.append(f"{key}: {opened.fields.get(key, 'missing')}, the model has {value}")
    width = config.get("head_dim") or int(config["hidden_size"]) // heads
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        value = opened.fields.get(f"{architecture}.{key}")
        if value is None and (key.startswith("rope") or width * heads == config["hidden_size"]):
            continue  # llama.cpp then divides the width by the heads
        if value != width:
            found.append(f"{architecture}.{key}: {value}, the model has {width}")
    return found


def _vocabulary(opened: Opened, tokenizer: TokenizerWrapper) -> list[str]:
    fields: Mapping[str, Any] = opened.fields
    size = int(opened.config["vocab_size"])
    tokens = fields.get("tokenizer.ggml.tokens") or []
    types = fields.get("tokenizer.ggml.token_type") or []
    found = []
    if not len(tokens) == len(types) == size:
        found.append(f"tokens: {len(tokens)}, types: {len(types)}, the model has {size}")
    moved = [(text, n) for text, n in tokenizer.get_vocab().items() if n < len(tokens) and tokens[n] != text]
    if moved:
        text, number = min(moved, key=lambda pair: pair[1])
        found.append(f"{len(moved)} tokens differ, the first is {number}: {tokens[number]!a}, not {text!a}")
    if not fields.get("tokenizer.ggml.merges"):
        found.append("tokenizer.ggml.merges: missing")
    if fields.get("tokenizer.ggml.pre") in (None, "", "default"):
        found.append("tokenizer.ggml.pre: missing, llama.cpp would split text by rules of its own")
    if (eos := fields.get("tokenizer.ggml.eos_token_id")) not in tokenizer.eos_token_ids:
        ends = ", ".join(map(str, sorted(tokenizer.eos_token_ids)))
        found.append(
            f"tokenizer.ggml.eos_token_id: {eos if eos is not None else 'missing'}, the model ends with {ends}"
        )
    template = fields.get("tokenizer.chat_template")
    if (template or None) != (_template(tokenizer) or None):
        found.append("tokenizer.chat_template: not the model's" if template else "tokenizer.chat_template: missing")
    return found


def _template(tokenizer: TokenizerWrapper) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(found, float) and isinstance(wanted, int | float):
        return math.isclose(found, wanted, rel_tol=RELATIVE)
    return bool(found == wanted)
