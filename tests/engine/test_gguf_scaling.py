"""Rotation stretched for long contexts: llama.cpp and mlx-lm compute the same far beyond the original context."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx_lm
import pytest
from gguf import GGUFReader
from gguf_consumer import EXACT, difference, generate, llama_cpp
from gguf_models import build_tiny
from tokenizers import Tokenizer

from afs_mlx.engine.gguf import export_gguf
from afs_mlx.engine.gguf.layouts import ROPE_FACTORS

ORIGINAL = 32  # tokens
TEXT = "LDA #$10 : STA $2100,x\n\tJSL $0080FF ; comment\n.loop:\n    BNE .loop\n" * 3
LINEAR = {"type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": ORIGINAL}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": ORIGINAL}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2, linear": ("qwen2", {"rope_scaling": LINEAR}),
    "qwen2, yarn": ("qwen2", {"rope_scaling": YARN}),
    "qwen2, yarn, betas as everywhere": ("qwen2", {"rope_scaling": YARN | {"beta_fast": 32.0, "beta_slow": 1}}),
    "qwen2, yarn, magnitude": ("qwen2", {"rope_scaling": YARN | {"mscale": 0.5, "mscale_all_dim": 0.8}}),
    "qwen3, linear": ("qwen3", {"rope_scaling": LINEAR}),
    "qwen3, yarn": ("qwen3", {"rope_scaling": YARN}),
    "llama, linear": ("llama", {"rope_scaling": LINEAR}),
    "llama, yarn": ("llama", {"rope_scaling": YARN}),
    "llama, llama3": ("llama", {"rope_scaling": LLAMA3}),
}


@pytest.fixture(autouse=True)
def cpu() -> Iterator[None]:
    """The same arithmetic on both sides, on every machine."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.mark.parametrize("case", CASES)
def test_beyond_the_original_context_llama_cpp_agrees_with_mlx(tmp_path: Path, case: str) -> None:
    family, changes = CASES[case]
    folder = tmp_path / "model"
    build_tiny(folder, family, rope_theta=10000.0, **changes)
    post = llama_cpp(export_gguf(folder, tmp_path / "model.gguf", "f32", name="tiny").path)
    model, _ = mlx_lm.load(str(folder))
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    assert len(ids) > 3 * ORIGINAL
    tokens = generate(post, ids)
    worst = difference(post, model, ids, tokens)
    print(f"{case}: {len(ids)} tokens, max |Δ log p| {worst:.6f}")
    assert worst < EXACT
    # The keys are what does it: without them the same weights answer otherwise.
    (tmp_path / "plain").mkdir()
    build_tiny(tmp_path / "plain", family, rope_theta=10000.0)
    plain, _ = mlx_lm.load(str(tmp_path / "plain"))
    assert difference(post, plain, ids, tokens) > 10 * EXACT


def test_the_keys_of_a_scaled_rotation(tmp_path: Path) -> None:
    build_tiny(tmp_path / "model", "qwen2", rope_scaling=YARN)
    reader = GGUFReader(export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f16", name="tiny").path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields[gguf.Keys.Rope.SCALING_TYPE.format(arch="qwen2")] == "yarn"
    assert fields[gguf.Keys.Rope.SCALING_FACTOR.format(arch="qwen2")] == 8.0
    assert fields[gguf.Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch="qwen2")] == ORIGINAL
    assert gguf.Keys.Rope.SCALING_ATTN_FACTOR.format(arch="qwen2") not in fields
    assert ROPE_FACTORS not in {tensor.name for tensor in reader.tensors}
