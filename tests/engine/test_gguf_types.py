"""The types of a GGUF: their bytes are ggml's, their mixes llama.cpp's, and what they cost is stated."""

import ctypes
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import gguf
import mlx.core as mx
import numpy as np
import pytest
import xllamacpp
from gguf import GGMLQuantizationType, GGUFReader
from gguf_consumer import EXACT, compare
from gguf_models import KQUANT_MODEL, build_golden, build_tiny

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.gguf import FileType, export_gguf
from afs_mlx.engine.gguf.encoding import KQUANTS, encode_rows
from afs_mlx.engine.gguf.layouts import LAYOUTS
from afs_mlx.engine.gguf.mixes import KINDS, LIMITS, gets_more_bits, type_of
from afs_mlx.engine.gguf.shape import read_shape
from afs_mlx.schema.gguf import GGUF_MEANINGS, GGUF_TYPES, GgufType

pytestmark = pytest.mark.slow

# Greedy equality, and the largest |Δ log p| over the vocabulary, on noise: trained weights lose less. About twice what
# was measured on Linux x86-64.
TOLERANCES: dict[FileType, tuple[bool, float]] = {
    "f32": (True, EXACT),
    "f16": (True, 0.01),
    "bf16": (True, 0.06),
    "q8_0": (False, 0.2),
    "q6_k": (False, 0.6),
    "q5_k_m": (False, 1.1),
    "q5_1": (False, 1.0),
    "q5_0": (False, 1.2),
    "q4_k_m": (False, 1.9),
    "q4_1": (False, 1.8),
    "q4_0": (False, 2.6),
}
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
QWEN25_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
OTHERS = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True}


@pytest.fixture(autouse=True)
def cpu() -> Iterator[None]:
    """The same arithmetic on both sides, on every machine."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("types") / "wide"
    build_golden(folder, KQUANT_MODEL)
    return folder


@pytest.fixture(scope="module")
def ggml() -> Callable[[np.ndarray, GGMLQuantizationType], np.ndarray]:
    """llama.cpp's own quantiser."""
    quantise = ctypes.CDLL(str(Path(xllamacpp.__file__).with_name("xllamacpp.abi3.so"))).ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def call(numbers: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        encoded = np.zeros((len(numbers), numbers.shape[1] // block * size), np.uint8)
        assert quantise(int(kind), numbers.ctypes.data, encoded.ctypes.data, 0, *numbers.shape, None) == encoded.nbytes
        return encoded

    return call


def need_libgguf(file_type: str) -> None:
    if GGUF_MEANINGS[file_type].needs_kquants:  # type: ignore[index]
        pytest.importorskip("libgguf", reason="no wheel of the kquants extra for this Python")


def numbers_that_round_badly() -> np.ndarray:
    """Noise of all sizes; zeros, equal numbers, halves, the smallest and the largest that an f16 scale holds."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((96, 512)) * np.exp(rng.uniform(-20, 8, size=(96, 1)))
    rows[0] = 0
    rows[1, :64] = 0
    rows[2] = 1.5
    rows[3] = np.round(rows[3] * 4) / 4 + 0.0  # without -0.0: of blocks of zeros gguf and ggml write another sign
    rows[4] = (np.arange(512) % 255 - 127) / 2  # with 127 in a block, the quantised numbers are exact halves
    rows[4, ::32] = 127
    rows[5] = np.nextafter(np.float32(0.5), np.float32(0))
    rows[5, ::32] = 127
    rows[6] = 1e-40
    rows[7] = 60000
    return rows.astype(np.float32)


# The tables


def test_every_table_has_every_type() -> None:
    assert set(GGUF_TYPES) == set(get_args(GgufType.__value__)) == set(KINDS)
    used = {kind for entry in KINDS.values() for kind in (entry.tensor, entry.output, entry.sensitive) if kind}
    assert used <= set(LIMITS)
    for name, entry in KINDS.items():
        kinds = {entry.tensor, entry.output or entry.tensor, entry.sensitive or entry.tensor}
        assert GGUF_MEANINGS[name].needs_kquants == bool(kinds & KQUANTS), name
        assert GGUF_MEANINGS[name].text


def planned(family: str, config: dict[str, Any], file_type: FileType) -> tuple[Counter[str], float, int]:
    """How many tensors of each type, their bits per weight, and their size in bytes."""
    shape = read_shape(OTHERS | config, Path("config.json"), scaled=False)
    counts, weights, size = Counter[str](), 0, 0
    for entry, target in LAYOUTS[family].targets(shape).values():
        if entry.need == "if present" or (entry.need == "untied" and shape.tied):
            continue
        kind = type_of(target.gguf, target.shape, KINDS[file_type], layers=shape.layers, tied=shape.tied)
        counts[kind.name] += 1
        weights += math.prod(target.shape)
        block, block_size = gguf.GGML_QUANT_SIZES[kind]
        size += math.prod(target.shape) // block * block_size
    return counts, 8 * size / weights, size


def test_the_mix_is_what_llama_cpp_prints_for_published_files() -> None:
    """Source: its loader's lines for Qwen3-4B and Qwen3-8B, and its quantiser's for SmolLM2-135M, all Q4_K_M."""
    counts, bits, size = planned("qwen3", QWEN3_4B, "q4_k_m")
    assert counts == {"F32": 145, "Q4_K": 216, "Q6_K": 37}
    assert round(bits, 2) == 4.95
    assert round(size / 2**30, 2) == 2.32
    untied = {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
    counts, _, _ = planned("qwen3", QWEN3_4B | untied, "q4_k_m")
    assert counts == {"F32": 145, "Q4_K": 217, "Q6_K": 37}
    counts, bits, size = planned("llama", SMOLLM2_135M, "q4_k_m")
    assert counts["Q5_0"] + counts["Q8_0"] == 181  # no row of 576 fills a block of 256; 180 and the embedding
    assert round(bits, 2) == 6.17
    assert round(size / 2**20, 2) == 98.87


@pytest.mark.parametrize("file_type", GGUF_TYPES)
def test_the_stated_bits_are_those_of_a_model_of_3_billion(file_type: FileType) -> None:
    _, bits, _ = planned("qwen2", QWEN25_3B, file_type)
    assert GGUF_MEANINGS[file_type].bits_per_weight == pytest.approx(bits, abs=0.06)


def test_the_layers_that_get_more_bits() -> None:
    chosen = [layer for layer in range(36) if gets_more_bits(layer, 36)]
    assert chosen == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31, 32, 33, 34, 35]
    assert [layer for layer in range(4) if gets_more_bits(layer, 4)] == [2, 3]


@pytest.mark.parametrize(
    ("file_type", "columns", "expected"),
    [
        ("q4_k_m", 256, "Q4_K"),
        ("q4_k_m", 320, "Q5_0"),
        ("q5_k_m", 320, "Q5_1"),
        ("q6_k", 320, "Q8_0"),
        ("q4_k_m", 48, "F16"),
        ("q8_0", 48, "F16"),
        ("q4_0", 48, "F16"),
        ("bf16", 48, "BF16"),
    ],
)
def test_rows_that_fill_no_block_fall_back(file_type: FileType, columns: int, expected: str) -> None:
    found = type_of("blk.0.ffn_up.weight", (8, columns), KINDS[file_type], layers=8, tied=True)
    assert found.name == expected
    assert type_of("blk.0.attn_q.bias", (columns,), KINDS[file_type], layers=8, tied=True).name == "F32"


# Bytes


@pytest.mark.parametrize("kind", LIMITS, ids=lambda kind: str(kind.name))
def test_the_bytes_are_ggmls(ggml: Callable[..., np.ndarray], kind: GGMLQuantizationType) -> None:
    if kind in KQUANTS:
        pytest.importorskip("libgguf", reason="no wheel of the kquants extra for this Python")
    numbers = numbers_that_round_badly()
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(encode_rows(numbers, kind), ggml(numbers, kind))


@pytest.mark.parametrize("kind", LIMITS, ids=lambda kind: str(kind.name))
def test_the_largest_number_of_a_type_survives_it(kind: GGMLQuantizationType) -> None:
    if kind in KQUANTS:
        pytest.importorskip("libgguf", reason="no wheel of the kquants extra for this Python")
    numbers = np.zeros((1, 256), np.float32)
    numbers[0, ::7] = LIMITS[kind]
    data = encode_rows(numbers, kind)
    back = data.view(np.float32) if kind.name == "F32" else gguf.dequantize(data, kind)
    assert np.isfinite(back).all()
    assert back[0, 0] == pytest.approx(LIMITS[kind], rel=0.05)


# What llama.cpp makes of a file of each type


@pytest.mark.parametrize("file_type", GGUF_TYPES)
def test_each_type_agrees_with_mlx_within_its_tolerance(wide: Path, tmp_path: Path, file_type: FileType) -> None:
    need_libgguf(file_type)
    report = export_gguf(wide, tmp_path / "model.gguf", file_type, name="tiny")
    reader = GGUFReader(report.path)
    assert reader.fields["general.file_type"].contents() == int(KINDS[file_type].file)
    same, tolerance = TOLERANCES[file_type]
    agree, worst = compare(wide, report.path)
    print(f"{file_type}: greedy equal {agree}, max |Δ log p| {worst:.6f}, {report.size_bytes} bytes")
    assert worst < tolerance
    assert agree or not same


def test_a_mix_uses_each_of_its_types(wide: Path, tmp_path: Path) -> None:
    need_libgguf("q4_k_m")
    reader = GGUFReader(export_gguf(wide, tmp_path / "model.gguf", "q4_k_m", name="tiny").path)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == "Q6_K"
    assert [types[f"blk.{layer}.attn_v.weight"] for layer in range(4)] == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert [types[f"blk.{layer}.ffn_down.weight"] for layer in range(4)] == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert types["blk.3.attn_q.weight"] == types["blk.3.ffn_up.weight"] == "Q4_K"
    assert types["blk.3.attn_q.bias"] == types["output_norm.weight"] == "F32"


# Without the extra


def test_without_the_extra_the_error_names_it(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libgguf", None)  # as when it is not installed
    with pytest.raises(AfsError, match=r"q4_k_m needs K-quants.*\n.*afs-mlx\[kquants\]"):
        export_gguf(wide, tmp_path / "model.gguf", "q4_k_m", name="tiny")
    assert list(tmp_path.iterdir()) == []
    assert export_gguf(wide, tmp_path / "model.gguf", "q4_1", name="tiny").tensors > 40


def test_without_the_extra_a_model_whose_rows_all_fall_back_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libgguf", None)
    build_tiny(tmp_path / "model", "qwen2")  # rows of 64 and 192
    reader = GGUFReader(export_gguf(tmp_path / "model", tmp_path / "model.gguf", "q5_k_m", name="tiny").path)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32", "Q5_1", "Q8_0"}
