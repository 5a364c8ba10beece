"""Micro models of each layout, made from a seed with numpy alone: the same files in PyTorch's environment and in ours.

`RandomState` and not `default_rng`, for its stream is promised to stay.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
}
HEAD = 8
# By name: config.json beside SIZES. Between them: tied and not, biases or none, query norms, a head that is not square.
BASES = {
    "micro-qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False},
    "micro-qwen3": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "tie_word_embeddings": True,
        "head_dim": HEAD,
        "attention_bias": False,
    },
    "micro-llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
        "head_dim": HEAD,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "micro-mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "tie_word_embeddings": False,
        "head_dim": HEAD,
        "sliding_window": None,
    },
}


def build(folder: Path, name: str) -> None:
    """Write config.json and model.safetensors (float32) of one micro model."""
    config = SIZES | BASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    random = np.random.RandomState(sorted(BASES).index(name) + 1)
    tensors = {}
    for tensor, shape in shapes(config).items():
        noise = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1 and not tensor.endswith("bias"):
            tensors[tensor] = 1 + 0.1 * noise
        else:
            tensors[tensor] = noise * np.float32(0.1 if tensor.endswith("bias") else shape[-1] ** -0.5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Each tensor's shape by its name in transformers."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries, keys = config["num_attention_heads"] * HEAD, config["num_key_value_heads"] * HEAD
    found = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        for side, size in (("q", queries), ("k", keys), ("v", keys)):
            found[f"{block}.self_attn.{side}_proj.weight"] = (size, hidden)
            if config["model_type"] == "qwen2":
                found[f"{block}.self_attn.{side}_proj.bias"] = (size,)
        if config["model_type"] == "qwen3":
            found |= {f"{block}.self_attn.{side}_norm.weight": (HEAD,) for side in ("q", "k")}
        found[f"{block}.self_attn.o_proj.weight"] = (hidden, queries)
        found[f"{block}.mlp.gate_proj.weight"] = found[f"{block}.mlp.up_proj.weight"] = (inner, hidden)
        found[f"{block}.mlp.down_proj.weight"] = (hidden, inner)
        found |= {f"{block}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return found
