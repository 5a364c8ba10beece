"""The weights of a model folder, a few rows at a time, always as float32. Knows nothing of GGUF.

Reads shards and folders that mlx quantised. Rust's safetensors decides what is well formed; the numbers are then read
through a memory map, because numpy has no bfloat16 and a large model must not be in memory twice.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.core.files import read_json
from afs_mlx.engine.adapters.tensors import read_headers

type Rows = slice | np.ndarray[Any, np.dtype[np.int64]]
type Floats = np.ndarray[Any, np.dtype[np.float32]]

INDEX = "model.safetensors.index.json"
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U32": "<u4"}  # BF16 as its bits
DOWNLOAD = "download or make the model again"


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in a file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def raw(self, rows: Rows) -> np.ndarray[Any, Any]:
        """The chosen rows in the file's own type; only their pages are read."""
        whole = np.memmap(self.path, STORED[self.dtype], "r", self.offset, self.shape)
        return np.ascontiguousarray(whole[rows])

    def floats(self, rows: Rows) -> Floats:
        """The chosen rows as float32; what float32 cannot hold becomes infinite."""
        raw = self.raw(rows)
        if self.dtype == "BF16":  # the upper half of a float32
            return (raw.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            return raw.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Packed:
    """One weight that mlx quantised: whole numbers, with a scale and an offset for each group of a row."""

    weight: Stored
    scales: Stored
    biases: Stored
    group_size: int
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) once unpacked."""
        return (self.weight.shape[0], self.weight.shape[1] * 32 // self.bits)

    def floats(self, rows: Rows) -> Floats:
        """The chosen rows, dequantised in float32."""
        parts = (
            mx.array(self.weight.raw(rows)),
            mx.array(self.scales.floats(rows)),
            mx.array(self.biases.floats(rows)),
        )
        return np.asarray(mx.dequantize(*parts, group_size=self.group_size, bits=self.bits), dtype=np.float32)


def open_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Stored | Packed]:
    """Every weight by its Hugging Face name, nothing read yet but the headers.

    Raises MissingError without weights, AfsError listing what is malformed, of an unknown type or quantised elsewhere.
    """
    stored: dict[str, Stored] = {}
    for path in weight_files(folder):
        headers = read_headers(path, DOWNLOAD)
        offsets = _offsets(path)
        twice = sorted(stored.keys() & headers.keys())
        if twice:
            raise problems([f"{name}: in two files" for name in twice], "the shards disagree", str(path), DOWNLOAD)
        for name, header in headers.items():
            stored[name] = Stored(path, header.dtype, header.shape, offsets[name])
    found = [f"{name}: type {part.dtype}" for name, part in stored.items() if part.dtype not in STORED]
    if found:
        raise problems(found, "weights of a type that is not exported", str(folder), f"known: {', '.join(STORED)}")
    return _join_quantised(stored, config, folder)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: those of the index where there is one, else `model*.safetensors`."""
    if (folder / INDEX).is_file():
        names = read_json(folder / INDEX, "the index of the shards").get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise AfsError("the index has no weight_map of file names", str(folder / INDEX), DOWNLOAD)
        shards = sorted(set(names.values()))
        outside = [name for name in shards if Path(name).name != name]
        if outside:
            raise problems(outside, "the index points outside the folder", str(folder / INDEX), DOWNLOAD)
        return [folder / name for name in shards]
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise MissingError("no weights here (model.safetensors)", str(folder), DOWNLOAD)
    return files


def _offsets(path: Path) -> dict[str, int]:
    """Where each tensor begins; the file has passed the safetensors library."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _join_quantised(stored: dict[str, Stored], config: Mapping[str, Any], folder: Path) -> dict[str, Stored | Packed]:
    """Put `weight`, `scales` and `biases` of each quantised layer together."""
    settings = config.get("quantization")
    if settings is None and config.get("quantization_config"):
        other = config["quantization_config"]
        kind = other.get("quant_method", "unknown") if isinstance(other, dict) else other
        raise AfsError(
            f"the weights are quantised by {kind!r}, which is not exported",
            str(folder / "config.json"),
            "export the unquantised original",
        )
    joined: dict[str, Stored | Packed] = {}
    found: list[str] = []
    for name, part in stored.items():
        layer, _, kind = name.rpartition(".")
        if kind in ("scales", "biases") and f"{layer}.weight" in stored:
            continue
        if part.dtype != "U32":
            joined[name] = part
            continue
        packed = _packed(layer, stored, settings)
        if isinstance(packed, str):
            found.append(f"{name}: {packed}")
        else:
            joined[name] = packed
    if found:
        raise problems(
            found, "quantised weights that cannot be unpacked", str(folder), "export the unquantised original"
        )
    return joined


def _packed(layer: str, stored: dict[str, Stored], settings: Any) -> Packed | str:
    """The three tensors of a quantised layer, or why they are none."""
    if not isinstance(settings, dict):
        return "packed, and config.json has no quantization"
    own = settings.get(layer)
    setting = own if isinstance(own, dict) else settings
    mode, bits, group = setting.get("mode", "affine"), setting.get("bits"), setting.get("group_size")
    if mode != "affine":
        return f"quantised in mode {mode!r}, only 'affine' is exported"
    if bits not in (2, 3, 4, 5, 6, 8) or group not in (32, 64, 128):
        return f"{bits!r} bits in groups of {group!r}"
    parts = [stored.get(f"{layer}.{kind}") for kind in ("weight", "scales", "biases")]
    weight, scales, biases = parts
    if weight is None or scales is None or biases is None:
        return "without scales and biases"
    packed = Packed(weight, scales, biases, group, bits)
    if len(weight.shape) != 2 or any(
        part.shape != (weight.shape[0], packed.shape[1] // group) for part in (scales, biases)
    ):
        return f"shape {list(weight.shape)} does not fit its scales at {bits} bits in groups of {group}"
    return packed
