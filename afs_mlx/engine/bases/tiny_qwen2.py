"""The `tiny-qwen2` base: a complete Qwen2 model folder made from a seed, for tests that take seconds.

It has everything that goes wrong in the real base: q/k/v biases, grouped heads, tied embeddings, a vocabulary padded
beyond the tokenizer. Its weights are noise. Imports numpy, safetensors and tokenizers only, so that it also builds
where there is no mlx.
"""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from afs_mlx.core.files import write_folder, write_json
from afs_mlx.engine.bases.tiny_corpus import CORPUS
from afs_mlx.engine.tensor_files import write_tensors

HIDDEN = 64
INTERMEDIATE = 192
LAYERS = 4
HEADS = 4
KEY_VALUE_HEADS = 2
HEAD_WIDTH = HIDDEN // HEADS
BPE_SIZE = 640  # 256 bytes and the merges
VOCABULARY = 704  # padded to a multiple of 64: as in Qwen2.5, the last ids have an embedding and no token

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
TOOL_TOKENS = ("<tool_call>", "</tool_call>")  # added but not special, as in Qwen2.5: decoding keeps them

# Qwen2.5's own pre-tokenizer: contractions, words with one leading sign, single digits, signs, line ends, white space.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

# Renders the same text as Qwen2.5's template; mlx-lm takes the words `tool_call.name` as the sign of JSON tool calls.
CHAT_TEMPLATE = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else '" + DEFAULT_SYSTEM + "' %}"
    "{{- '<|im_start|>system\\n' ~ system }}"
    "{%- if tools %}"
    "{{- '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n"
    "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}"
    "{%- for tool in tools %}{{- '\\n' ~ (tool | tojson) }}{%- endfor %}"
    "{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\\n<tool_call>\\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>\' }}'
    "{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- elif message.role == 'assistant' and message.tool_calls %}"
    "{{- '<|im_start|>assistant' ~ ('\\n' ~ message.content if message.content else '') }}"
    "{%- for tool_call in message.tool_calls %}"
    "{%- set tool_call = tool_call.function if tool_call.function is defined else tool_call %}"
    '{{- \'\\n<tool_call>\\n{"name": "\' ~ tool_call.name ~ \'", "arguments": \' }}'
    "{{- (tool_call.arguments | tojson) ~ '}\\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- elif message.role in ('user', 'assistant') or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def build_tiny_qwen2(folder: Path, seed: int = 0) -> None:
    """Write the model folder, the same bytes for the same seed; a folder that was there is replaced whole."""
    tokenizer = tiny_tokenizer()

    def fill(target: Path) -> None:
        vocabulary = tokenizer.get_vocab()
        end, turn_end = vocabulary[END_OF_TEXT], vocabulary[TURN_END]
        tokenizer.save(str(target / "tokenizer.json"))
        write_json(target / "tokenizer_config.json", _tokenizer_config(tokenizer))
        write_json(target / "config.json", _model_config(end, turn_end))
        write_json(
            target / "generation_config.json",
            {"bos_token_id": end, "pad_token_id": end, "eos_token_id": [turn_end, end], "do_sample": False},
        )
        write_tensors(target / "model.safetensors", tiny_weights(seed), {"format": "pt"})
        (target / "model.safetensors").chmod(0o644)

    write_folder(folder, fill)


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE with all 256 bytes, trained on the embedded corpus, then Qwen2.5's added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=BPE_SIZE, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TOOL_TOKENS])
    return tokenizer


def tiny_weights(seed: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Every tensor by its Hugging Face name, linear weights (out, in), float32; none is zero, no norm is all ones."""
    rng = np.random.default_rng(seed)

    def noise(scale: float, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.float32(scale) * rng.standard_normal(shape, dtype=np.float32)

    def norm() -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.float32(1) + noise(0.2, HIDDEN)

    key_value = KEY_VALUE_HEADS * HEAD_WIDTH
    embedding = noise(0.2, VOCABULARY, HIDDEN)
    embedding[BPE_SIZE + len(SPECIAL_TOKENS) + len(TOOL_TOKENS) :] *= np.float32(
        0.05
    )  # so that padding is never the answer
    weights = {"model.embed_tokens.weight": embedding}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        weights[f"{prefix}.input_layernorm.weight"] = norm()
        for name, width in (("q", HIDDEN), ("k", key_value), ("v", key_value)):
            weights[f"{prefix}.self_attn.{name}_proj.weight"] = noise(0.15, width, HIDDEN)
            weights[f"{prefix}.self_attn.{name}_proj.bias"] = noise(0.3, width)
        weights[f"{prefix}.self_attn.o_proj.weight"] = noise(0.1, HIDDEN, HIDDEN)
        weights[f"{prefix}.post_attention_layernorm.weight"] = norm()
        weights[f"{prefix}.mlp.gate_proj.weight"] = noise(0.1, INTERMEDIATE, HIDDEN)
        weights[f"{prefix}.mlp.up_proj.weight"] = noise(0.1, INTERMEDIATE, HIDDEN)
        weights[f"{prefix}.mlp.down_proj.weight"] = noise(0.1, HIDDEN, INTERMEDIATE)
    weights["model.norm.weight"] = norm()
    return weights


def _model_config(end: int, turn_end: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "eos_token_id": turn_end,
        "pad_token_id": end,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 4096,
        "max_window_layers": LAYERS,
        "model_type": "qwen2",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in (*SPECIAL_TOKENS, *TOOL_TOKENS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [TURN_START, TURN_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
