"""Every tensor, byte for byte, as llama.cpp's own converter and quantiser write it.

golden.json and the script that made it are in tests/golden/gguf.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf_models import GOLDEN_MODELS, KQUANT_MODEL, build_golden

from afs_mlx.engine.gguf import FileType, export_gguf
from afs_mlx.engine.gguf.layouts import ROPE_FACTORS
from afs_mlx.schema.gguf import GGUF_MEANINGS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gguf" / "golden.json").read_text())
UPSTREAM = [(model, kind) for model, kinds in GOLDEN["upstream"].items() for kind in kinds if model in GOLDEN_MODELS]


def hashes(path: Path) -> dict[str, str]:
    """Type and hash of each tensor."""
    return {tensor.name: f"{tensor.tensor_type.name} {tensor_hash(tensor.data)}" for tensor in GGUFReader(path).tensors}


def tensor_hash(data: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()[:32]


def test_the_golden_file_covers_every_layout() -> None:
    assert len(UPSTREAM) == 4 * len(GOLDEN_MODELS) == 16
    assert all(len(GOLDEN["upstream"][model][kind]) > 35 for model, kind in UPSTREAM)


@pytest.mark.parametrize(("model", "file_type"), UPSTREAM)
def test_tensors_are_those_of_the_upstream_converter(tmp_path: Path, model: str, file_type: FileType) -> None:
    build_golden(tmp_path / model, model)
    path = export_gguf(tmp_path / model, tmp_path / "model.gguf", file_type, name=model).path
    found, golden = hashes(path), dict(GOLDEN["upstream"][model][file_type])
    assert (found.pop(ROPE_FACTORS, None) is None) == (ROPE_FACTORS not in golden)
    factors = [tensor.data for tensor in GGUFReader(path).tensors if tensor.name == ROPE_FACTORS]
    if factors:  # computed, not copied: the last bit is the machine's
        np.testing.assert_allclose(factors[0], golden.pop(ROPE_FACTORS), rtol=1e-6)
    assert found == golden


@pytest.mark.parametrize("file_type", ["q6_k", "q5_k_m", "q4_k_m", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_matrices_are_those_of_llama_cpps_quantiser(tmp_path: Path, file_type: FileType) -> None:
    if GGUF_MEANINGS[file_type].needs_kquants:
        pytest.importorskip("libgguf", reason="no wheel of the kquants extra for this Python")
    build_golden(tmp_path / "model", KQUANT_MODEL)
    path = export_gguf(tmp_path / "model", tmp_path / "model.gguf", file_type, name="wide").path
    golden, compared = GOLDEN["ggml"][KQUANT_MODEL], set()
    for tensor in GGUFReader(path).tensors:
        kind = tensor.tensor_type.name
        if kind in golden:  # the output of the older types is Q8_0, which the converter's hashes cover
            assert tensor_hash(tensor.data) == golden[kind][tensor.name], (tensor.name, kind)
            compared.add(tensor.name)
    matrices = set(golden["Q4_0"])
    assert compared == (matrices if GGUF_MEANINGS[file_type].needs_kquants else matrices - {"token_embd.weight"})


@pytest.mark.smollm2
@pytest.mark.parametrize("file_type", ["f16", "q8_0"])
def test_the_embedded_bases_tensors_are_those_of_the_upstream_converter(
    smollm2_base: Path, tmp_path: Path, file_type: FileType
) -> None:
    path = export_gguf(smollm2_base, tmp_path / "model.gguf", file_type, name="SmolLM2 135M").path
    golden = GOLDEN["upstream"]["smollm2-135m"][file_type]
    assert len(golden) == 272
    assert hashes(path) == golden
