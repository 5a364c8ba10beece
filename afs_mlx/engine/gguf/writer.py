"""One model folder → one GGUF file, tensor by tensor: the largest tensor is the most that is in memory."""

import errno
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFReader, GGUFWriter

from afs_mlx.core.errors import UsageError, closest, problems
from afs_mlx.core.files import atomic_path, disk_error, existing_parent, read_json, sha256_of
from afs_mlx.engine.gguf.layouts import layout_of, match_names
from afs_mlx.engine.gguf.shape import ModelShape, read_shape
from afs_mlx.engine.gguf.source import open_weights
from afs_mlx.engine.gguf.tensors import KINDS, FileType, Kind, Planned, encode, plan_tensors
from afs_mlx.engine.gguf.vocabulary import read_vocabulary

FIX_NUMBERS = "beyond a range: export as q8_0 or f32; NaN or infinite: the training diverged, use an earlier checkpoint"
METADATA_BYTES = 16 << 20  # more than any vocabulary takes; for the check of the free space only


@dataclass(frozen=True)
class GgufReport:
    """The file that was written, and read back."""

    path: Path
    size_bytes: int
    tensors: int
    file_type: FileType
    sha256: str


def export_gguf(
    model_folder: Path,
    out: Path,
    file_type: FileType,
    *,
    name: str,
    description: str = "",
    on_tensor: Callable[[int, int], None] | None = None,
) -> GgufReport:
    """Write a model folder of the Qwen2 or Llama family as GGUF; `on_tensor` hears (written, total).

    Matrices get `file_type`, vectors stay float32. The file appears under `out` whole or not at all, and one that was
    there stays until then. Raises AfsError for a model, tokenizer or weights that cannot be written faithfully.
    """
    if file_type not in KINDS:
        raise UsageError(f"no such GGUF file type: {file_type}", "file_type", closest(file_type, list(KINDS)))
    if out.is_dir():
        raise UsageError(
            "this is a folder, not a file to write", str(out), f"name a file, such as {out / 'model.gguf'}"
        )
    config_path = model_folder / "config.json"
    config = read_json(config_path, "the model's configuration")
    layout = layout_of(config, config_path)
    shape = read_shape(config, config_path, scaled=layout.scaled)
    vocabulary = read_vocabulary(model_folder, config, shape.vocabulary)
    weights = open_weights(model_folder, config)
    targets = match_names(layout, shape, {key: weight.shape for key, weight in weights.items()}, model_folder)
    plan = plan_tensors(weights, targets, shape, KINDS[file_type].tensor)
    _check_space(plan, out)

    with atomic_path(out) as temporary:
        writer = GGUFWriter(temporary, layout.architecture)
        try:
            _add_general(writer, name, description, KINDS[file_type], _license(model_folder))
            shape.add_to(writer)
            vocabulary.add_to(writer)
            for planned in plan:
                byte_shape = planned.byte_shape
                writer.add_tensor_info(
                    planned.name, byte_shape, np.dtype(np.uint8), math.prod(byte_shape), planned.type
                )
            writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
            _write(writer, plan, shape, model_folder, on_tensor)
        finally:
            writer.close()
        _read_back(temporary, plan, out)
    return GgufReport(out, out.stat().st_size, len(plan), file_type, sha256_of(out))


def _write(
    writer: GGUFWriter,
    plan: list[Planned],
    shape: ModelShape,
    where: Path,
    on_tensor: Callable[[int, int], None] | None,
) -> None:
    """Write header, metadata and data; raises one AfsError for all tensors whose numbers cannot be kept."""
    found: list[str] = []
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, planned in enumerate(plan, 1):
            writer.write_tensor_data(encode(planned, shape, found))
            if on_tensor is not None:
                on_tensor(number, len(plan))
    except OSError as error:
        if error.errno is None:  # numpy reports a short write as text only
            raise OSError(errno.ENOSPC, str(error)) from error
        raise
    if found:
        raise problems(found, "weights that the file cannot hold", str(where), FIX_NUMBERS)


def _check_space(plan: list[Planned], out: Path) -> None:
    """Say before the work, not after minutes of it, that the disk is too small."""
    needed = METADATA_BYTES + sum(math.prod(planned.byte_shape) for planned in plan)
    if shutil.disk_usage(existing_parent(out.parent)).free < needed:
        raise disk_error(OSError(errno.ENOSPC, f"needs {needed} bytes"), out)


def _add_general(writer: GGUFWriter, name: str, description: str, kind: Kind, license_id: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_description(description)
    writer.add_license(license_id)
    writer.add_file_type(kind.file)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _license(folder: Path) -> str:
    """The licence that the manifest or the head of the model card states, else empty."""
    manifest = folder / "manifest.json"
    if manifest.is_file():
        stated = read_json(manifest, "the manifest").get("license")
        if isinstance(stated, str):
            return stated
    card = folder / "README.md"
    if card.is_file():
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
        head = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
        for line in head:
            key, _, value = line.partition(":")
            if key == "license":
                return value.strip()
    return ""


def _read_back(path: Path, plan: list[Planned], out: Path) -> None:
    """Compare names, types and shapes of the file with the plan."""
    # GGUF counts axes from the innermost.
    written = {
        tensor.name: (tensor.tensor_type, tuple(map(int, reversed(tensor.shape))))
        for tensor in GGUFReader(path).tensors
    }
    planned = {tensor.name: (tensor.type, tensor.shape) for tensor in plan}
    found = [
        f"{name}: {written.get(name, 'absent')} instead of {planned.get(name, 'nothing')}"
        for name in planned.keys() | written.keys()
        if written.get(name) != planned.get(name)
    ]
    if found:
        raise problems(
            found, "the file does not read back as it was written", str(out), "check the disk and export again"
        )
