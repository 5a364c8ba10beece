"""The tiny base is complete, the same on every machine, and shaped like the real one."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from afs_mlx.engine.bases import tiny_qwen2
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2

ASSEMBLY = "    LDA.w $7E2000,X\n\tSTA $10\r\n; don't 1234  é 漢字 e\u0301 \x00\x7f"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases") / "tiny-qwen2"
    build_tiny_qwen2(path)
    return path


@pytest.fixture(scope="module")
def chat(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(folder: Path, tmp_path: Path) -> None:
    build_tiny_qwen2(tmp_path / "again")
    build_tiny_qwen2(tmp_path / "other", seed=1)
    first, again, other = (digests(path) for path in (folder, tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_no_tensor_is_so_plain_that_a_mistake_with_it_would_not_show(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    assert len(weights) == 2 + 12 * tiny_qwen2.LAYERS
    assert sum(weight.size for weight in weights.values()) < 1_000_000
    for name, weight in weights.items():
        assert weight.dtype == "float32"
        assert abs(weight).min() > 0, name
        assert weight.std() > 0.01, name


def test_the_vocabulary_is_padded_beyond_the_tokenizer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == tiny_qwen2.BPE_SIZE + 5
    assert config["vocab_size"] == len(load_file(folder / "model.safetensors")["model.embed_tokens.weight"])
    assert config["vocab_size"] > tokenizer.get_vocab_size()
    assert config["vocab_size"] % 64 == 0
    assert config["eos_token_id"] == tokenizer.token_to_id("<|im_end|>")
    assert config["pad_token_id"] == tokenizer.token_to_id("<|endoftext|>")


def test_every_byte_survives_and_words_split_as_in_qwen(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "".join(map(chr, range(256))) + "🙂漢字"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str("don't add 12 \n\n  x++;")]
    assert words == ["don", "'t", "Ġadd", "Ġ", "1", "2", "ĠĊĊ", "Ġ", "Ġx", "++;"]
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids  # NFC
    assert len(tokenizer.encode("    LDA $10\n    STA $4202\n").ids) <= 14


def test_transformers_reads_the_same_tokenizer(folder: Path, chat) -> None:
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = ASSEMBLY + "<|im_start|>user\nhi<|im_end|><tool_call>x</tool_call>"
    assert chat.encode(text) == raw.encode(text).ids
    assert (chat.eos_token, chat.pad_token, chat.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert chat.decode(chat.encode("a<|im_end|><tool_call>"), skip_special_tokens=True) == "a<tool_call>"


def test_the_template_fills_in_the_default_system_text(chat) -> None:
    text = chat.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_template_renders_tools_calls_and_answers(chat) -> None:
    tool = {"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Read it."},
        {
            "role": "assistant",
            "content": "Yes.",
            "tool_calls": [
                {"type": "function", "function": {"name": "read", "arguments": {"path": "é.asm"}}},
                {"name": "read", "arguments": {}},
            ],
        },
        {"role": "tool", "content": "RTS"},
        {"role": "tool", "content": "RTL"},
        {"role": "assistant", "content": "Done."},
    ]
    assert chat.apply_chat_template(messages, tools=[tool], tokenize=False) == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user query."
        "\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}\n'
        "</tools>\n\nFor each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nRead it.<|im_end|>\n"
        '<|im_start|>assistant\nYes.\n<tool_call>\n{"name": "read", "arguments": {"path": "é.asm"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "read", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nRTS\n</tool_response>\n<tool_response>\nRTL\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nDone.<|im_end|>\n"
    )


def test_building_imports_no_mlx_and_no_transformers(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2;"
        f"build_tiny_qwen2(pathlib.Path({str(tmp_path / 'tiny')!r}));"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'mlx', 'mlx_lm', 'transformers', 'torch', 'gguf'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
