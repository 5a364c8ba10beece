"""Seconds and peak memory of converting a PEFT adapter, beside copying its file; both end with the bytes on the disk.

The adapters are random, rank 16 on all linear layers, in the shapes of Qwen2.5 3B and of a 70B; the base is its headers
alone, in a sparse file. Each side runs in a process of its own, the two in turn; what is imported is not counted.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUNS = 5
RANK = 16
# blocks, hidden, intermediate, keys and values
SHAPES = {"3B": (36, 2048, 11008, 256), "70B": (80, 8192, 28672, 1024)}
VOCABULARY = 151_936


def layers(size: str) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer."""
    blocks, hidden, inner, keys = SHAPES[size]
    sides = {"self_attn.q": (hidden, hidden), "self_attn.k": (keys, hidden), "self_attn.v": (keys, hidden)}
    sides |= {"self_attn.o": (hidden, hidden), "mlp.gate": (inner, hidden), "mlp.up": (inner, hidden)}
    sides |= {"mlp.down": (hidden, inner)}
    return {f"model.layers.{i}.{name}_proj": shape for i in range(blocks) for name, shape in sides.items()}


def make_base(folder: Path, size: str) -> None:
    """config.json, and a sparse file that holds the header of every weight in bfloat16."""
    blocks, hidden, inner, _ = SHAPES[size]
    config = {"model_type": "qwen2", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": blocks}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": VOCABULARY, "tie_word_embeddings": True}))
    header: dict[str, Any] = {}
    end = 0
    for path, (rows, columns) in {"model.embed_tokens": (VOCABULARY, hidden), **layers(size)}.items():
        start, end = end, end + 2 * rows * columns
        header[f"{path}.weight"] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def make_adapter(folder: Path, size: str) -> None:
    """A random PEFT folder in float32."""
    import numpy as np

    from afs_mlx.engine.tensor_files import stream_tensors

    folder.mkdir()
    names = {path.rpartition(".")[2] for path in layers(size)}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": sorted(names)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {}
    for path, (rows, columns) in layers(size).items():
        shapes[f"base_model.model.{path}.lora_A.weight"] = (RANK, columns)
        shapes[f"base_model.model.{path}.lora_B.weight"] = (rows, RANK)
    random = np.random.default_rng(0)
    arrays = (random.standard_normal(shape, np.float32) for shape in shapes.values())
    stream_tensors(folder / "adapter_model.safetensors", shapes, arrays, {"format": "pt"})


def peak_bytes() -> int:
    """The most this process has held at once."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def convert(peft: Path, base: Path, out: Path) -> dict[str, float]:
    """Our conversion: everything between the call and the synced files."""
    from afs_mlx.engine.adapters.peft import convert_peft

    before = peak_bytes()
    began = time.perf_counter()
    convert_peft(peft, base, out)
    return {"seconds": time.perf_counter() - began, "peak": peak_bytes(), "before": before}


def copy(peft: Path, out: Path) -> dict[str, float]:
    """Plain file copy, in the kernel where it can, synced."""
    out.mkdir()
    before = peak_bytes()
    began = time.perf_counter()
    shutil.copyfile(peft / "adapter_model.safetensors", out / "adapters.safetensors")
    with (out / "adapters.safetensors").open("rb") as file:
        os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - began, "peak": peak_bytes(), "before": before}


def in_own_process(what: str, *paths: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.convert", what, *map(str, paths)], check=True, capture_output=True, text=True
    )
    shutil.rmtree(paths[-1])
    result: dict[str, float] = json.loads(done.stdout)
    return result


def compare(size: str, root: Path) -> None:
    peft, base, out = root / f"peft-{size}", root / f"base-{size}", root / "out"
    make_base(base, size)
    make_adapter(peft, size)
    written = (peft / "adapter_model.safetensors").stat().st_size
    pairs = [(in_own_process("convert", peft, base, out), in_own_process("copy", peft, out)) for _ in range(RUNS)]
    ours, peer = (statistics.median(side["seconds"] for side in sides) for sides in zip(*pairs, strict=True))
    ratio = statistics.median(one["seconds"] / two["seconds"] for one, two in pairs)
    peak = max(one["peak"] for one, _ in pairs)
    before = max(one["before"] for one, _ in pairs)
    print(
        f"convert {size} r{RANK} all-linear, {written / 1e6:.0f} MB: {ours:.2f} s, copy {peer:.2f} s, "
        f"ratio {ratio:.2f}; peak {peak / 1e6:.0f} MB, {before / 1e6:.0f} MB of it before the first tensor; "
        f"median of {RUNS}"
    )
    shutil.rmtree(peft)
    shutil.rmtree(base)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for size in SHAPES:
            compare(size, Path(folder))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        arguments = [Path(argument) for argument in sys.argv[2:]]
        print(json.dumps((convert if sys.argv[1] == "convert" else copy)(*arguments)))
    else:
        main()
