"""One model folder → one GGUF file, tensor by tensor: the largest tensor is the most that is in memory."""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFWriter

from afs_mlx.core.errors import AfsError, UsageError, closest, problems
from afs_mlx.core.files import atomic_path, disk_error, existing_parent, read_json, sha256_of
from afs_mlx.engine.gguf.encoding import KQUANTS, require_kquants
from afs_mlx.engine.gguf.header import read_tensor_infos
from afs_mlx.engine.gguf.layouts import layout_of, match_names
from afs_mlx.engine.gguf.metadata import add_general
from afs_mlx.engine.gguf.mixes import KINDS
from afs_mlx.engine.gguf.shape import ModelShape, read_shape
from afs_mlx.engine.gguf.source import open_weights
from afs_mlx.engine.gguf.tensors import FileType, Planned, encode, plan_tensors
from afs_mlx.engine.gguf.vocabulary import read_vocabulary

FIX_NUMBERS = "beyond a range: export as q8_0 or f32; NaN or infinite: the training diverged, use an earlier checkpoint"
THREADS = min(4, os.cpu_count() or 1)
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
    source: Mapping[str, Any] | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
) -> GgufReport:
    """Write a model folder of the Qwen2, Qwen3 or Llama family as GGUF; `on_tensor` hears (written, total).

    Matrices get `file_type`, vectors stay float32. `source` is a manifest whose identity the file carries, that of the
    model folder when None. The file appears under `out` whole or not at all, and one that was there stays until then.
    Raises AfsError for a model, tokenizer or weights that cannot be written faithfully.
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
    if "lm_head.weight" in weights and "tie_word_embeddings" not in config:
        raise AfsError(
            "tie_word_embeddings is missing, and there is an lm_head.weight: mlx-lm would drop it, transformers use it",
            str(config_path),
            "state true or false",
        )
    targets = match_names(layout, shape, {key: weight.shape for key, weight in weights.items()}, model_folder)
    plan = plan_tensors(weights, targets, shape, KINDS[file_type])
    if any(planned.type in KQUANTS for planned in plan):
        require_kquants(file_type)
    _check_space(plan, out)

    with atomic_path(out) as temporary:
        writer = GGUFWriter(temporary, layout.architecture)
        try:
            add_general(writer, model_folder, KINDS[file_type], name, description, source)
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
    with short_writes_named():
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with ThreadPoolExecutor(THREADS) as pool:
            for number, planned in enumerate(plan, 1):
                writer.write_tensor_data(encode(planned, shape, found, pool))
                if on_tensor is not None:
                    on_tensor(number, len(plan))
    if found:
        raise problems(found, "weights that the file cannot hold", str(where), FIX_NUMBERS)


@contextmanager
def short_writes_named() -> Iterator[None]:
    """A short write, which numpy reports as text only, becomes the error of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(errno.ENOSPC, str(error)) from error
        raise


def _check_space(plan: list[Planned], out: Path) -> None:
    """Say before the work, not after minutes of it, that the disk is too small."""
    needed = METADATA_BYTES + sum(math.prod(planned.byte_shape) for planned in plan)
    if shutil.disk_usage(existing_parent(out.parent)).free < needed:
        raise disk_error(OSError(errno.ENOSPC, f"needs {needed} bytes"), out)


def _read_back(path: Path, plan: list[Planned], out: Path) -> None:
    """Compare names, types and shapes of the file with the plan."""
    written = {key: (info.type, info.shape) for key, info in read_tensor_infos(path).items()}
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
