"""An MLX LoRA alone as GGUF, for consumers that add it to a base GGUF when they load it (llama.cpp: `--lora`).

The format: `lora_a` (rank, in) and `lora_b` (out, rank) of each weight, and one alpha, of which each gets alpha / rank.
What it has no place for, DoRA's magnitudes and whole weights, is refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, Keys, LlamaFileType

from afs_mlx.core.errors import AfsError, UsageError, problems
from afs_mlx.core.files import atomic_path, read_json, sha256_of
from afs_mlx.engine.adapters.format import AdapterConfig, check_adapter_folder
from afs_mlx.engine.adapters.inspection import Adapter, Layer, read_adapter
from afs_mlx.engine.gguf.header import read_tensor_infos
from afs_mlx.engine.gguf.layouts import Layout, Target, layout_of
from afs_mlx.engine.gguf.shape import ModelShape, read_shape
from afs_mlx.engine.gguf.tensors import interleaved
from afs_mlx.engine.gguf.writer import GgufReport, short_writes_named

type AdapterType = Literal["f32", "f16"]
type Array = np.ndarray[Any, Any]

NUMPY_TYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
FILE_KINDS = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16}
TENSOR_KINDS = {NUMPY_TYPES["f32"]: GGMLQuantizationType.F32, NUMPY_TYPES["f16"]: GGMLQuantizationType.F16}
FUSE = "fuse it into the base and export that: afs-mlx fuse, then afs-mlx export gguf without --adapter"


@dataclass(frozen=True)
class Placed:
    """One adapted layer and the weight of the base GGUF that it changes. `factor` is folded into b."""

    path: str
    layer: Layer
    target: Target
    factor: float


def export_adapter_gguf(
    adapter_folder: Path,
    base_folder: Path,
    out: Path,
    file_type: AdapterType,
    *,
    name: str,
    on_tensor: Callable[[int, int], None] | None = None,
) -> GgufReport:
    """Write an MLX LoRA folder as GGUF for the base in `base_folder`; `on_tensor` hears (written, total).

    Layers that add nothing are left out. The file appears under `out` whole or not at all. Raises AfsError that lists
    everything the format cannot hold, with fusing as the remedy.
    """
    if file_type not in NUMPY_TYPES:
        raise UsageError(f"an adapter is not written as {file_type}", "file_type", f"known: {', '.join(NUMPY_TYPES)}")
    if out.is_dir():
        raise UsageError("this is a folder, not a file to write", str(out), f"name a file, such as {out / 'a.gguf'}")
    config_path = base_folder / "config.json"
    config = read_json(config_path, "the base's configuration")
    layout = layout_of(config, config_path)
    shape = read_shape(config, config_path, scaled=layout.scaled)
    adapter = _read(adapter_folder, base_folder)
    placed, alpha = _place(adapter, layout, shape)

    with atomic_path(out) as temporary:
        writer = GGUFWriter(temporary, layout.architecture)
        try:
            writer.add_type("adapter")
            writer.add_name(name)
            writer.add_file_type(FILE_KINDS[file_type])
            writer.add_string(Keys.Adapter.TYPE, "lora")
            writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
            written = _tensors(placed, file_type, adapter_folder, on_tensor)
            for tensor, array in written.items():
                writer.add_tensor(tensor, array)
            with short_writes_named():
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
        finally:
            writer.close()
        _read_back(temporary, written, out)
    return GgufReport(out, out.stat().st_size, len(written), file_type, sha256_of(out))


def _read(folder: Path, base_folder: Path) -> Adapter:
    """The adapter, checked against its base; raises for the kinds that GGUF has no place for."""
    config = AdapterConfig.read(folder, full=True)
    if config.fine_tune_type == "full":
        raise AfsError("whole weights (fine_tune_type 'full') are no LoRA, GGUF adapters hold LoRA", str(folder), FUSE)
    check_adapter_folder(folder, base_folder)
    adapter = read_adapter(folder)
    if found := [f"{path}.m: magnitudes of a DoRA" for path, layer in adapter.layers.items() if layer.magnitude]:
        raise problems(found, "a GGUF adapter cannot hold this", str(folder), FUSE)
    if config.fine_tune_type == "dora":
        # Without `m` mlx-lm takes the base's row lengths, which the update then does not change.
        raise AfsError("a GGUF adapter cannot hold a DoRA", str(folder), FUSE)
    return adapter


def _place(adapter: Adapter, layout: Layout, shape: ModelShape) -> tuple[list[Placed], float]:
    """Each layer that adds something with its weight, and the file's alpha.

    An alpha of zero would mean scale 1 to llama.cpp, so it is that of a layer that adds something.
    """
    targets = layout.targets(shape)
    found: list[str] = []
    kept: dict[str, tuple[Layer, Target]] = {}
    for path, layer in adapter.layers.items():
        if layer.read().is_zero:
            continue
        entry, target = targets.get(f"{path}.weight", (None, None))
        if entry is None or target is None or len(target.shape) != 2:
            found.append(f"{path}: no weight of a {layout.architecture} GGUF")
        elif target.gguf == "token_embd.weight":
            found.append(f"{path}: embeddings, whose LoRA is laid out otherwise")
        elif entry.need == "untied" and shape.tied:
            found.append(f"{path}: this base's output is its embeddings, the GGUF has no weight of its own for it")
        elif layer.shape != target.shape:
            found.append(f"{path}: (out, in) = {layer.shape}, the GGUF has {target.shape}")
        else:
            kept[path] = (layer, target)
    if found:
        raise problems(found, "a GGUF adapter cannot hold this", str(adapter.folder), FUSE)
    if not kept:
        raise AfsError("this adapter adds nothing to any layer", str(adapter.folder), "train it, or export the base")
    alpha = next(layer.scale * layer.rank for layer, _ in kept.values())
    placed = [Placed(path, layer, target, layer.scale * layer.rank / alpha) for path, (layer, target) in kept.items()]
    return placed, alpha


def _tensors(
    placed: list[Placed], file_type: AdapterType, where: Path, on_tensor: Callable[[int, int], None] | None
) -> dict[str, Array]:
    """Every tensor by its GGUF name; raises one AfsError for all numbers that the type cannot hold."""
    found: list[str] = []
    written: dict[str, Array] = {}
    limit = float(np.finfo(NUMPY_TYPES[file_type]).max)
    for one in placed:
        update = one.layer.read()
        b = update.b if one.factor == 1 else update.b * np.float32(one.factor)
        if one.target.rotating_heads:  # rows of b are rows of the weight
            b = b[interleaved(one.target.shape[0], one.target.rotating_heads)]
        for leaf, array in (("lora_a", update.a), ("lora_b", b)):
            largest = float(np.abs(array).max())
            if largest > limit:
                found.append(f"{one.path}.{leaf}: {largest:.6g} is beyond {limit:g}, the range of {file_type}")
            with np.errstate(over="ignore"):
                written[f"{one.target.gguf}.{leaf}"] = np.ascontiguousarray(array, dtype=NUMPY_TYPES[file_type])
            if on_tensor is not None:
                on_tensor(len(written), 2 * len(placed))
    if found:
        raise problems(found, "numbers that the file cannot hold", str(where), "export it as f32")
    return written


def _read_back(path: Path, written: dict[str, Array], out: Path) -> None:
    """Compare every number of the file with what was to be written."""
    infos = read_tensor_infos(path)
    found = [f"{name}: unexpected" for name in infos.keys() - written.keys()]
    with path.open("rb") as file:
        for name, array in written.items():
            info = infos.get(name)
            if info is None:
                found.append(f"{name}: absent")
            elif info.type != TENSOR_KINDS[array.dtype] or info.shape != array.shape:
                found.append(f"{name}: {info.type.name} {list(info.shape)}")
            elif file.seek(info.offset) != info.offset or file.read(info.size_bytes) != array.tobytes():
                found.append(f"{name}: other numbers")
    if found:
        raise problems(
            sorted(found), "the file does not read back as it was written", str(out), "check the disk and export again"
        )
