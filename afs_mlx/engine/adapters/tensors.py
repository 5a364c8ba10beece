"""Safetensors that others made. Rust's parser decides what is well formed; mlx's own accepts files that crash it.

Knows nothing of adapters: names, types and numbers only. Numbers are read when asked for, one tensor at a time.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from afs_mlx.core.errors import AfsError, MissingError

type FloatArray = np.ndarray[Any, np.dtype[np.float32]]

# By the format's spelling, how numpy reads a type; BF16, which it lacks, is the upper half of a float32.
NUMPY_FLOATS = {"BF16": "<u2", "F64": "<f8", "F32": "<f4", "F16": "<f2"}
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Header:
    """One tensor as a file announces it: its type in the format's spelling (`F32`, `BF16`, `U32`) and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether its numbers can be read as float32."""
        return self.dtype in NUMPY_FLOATS

    def form_problem(self) -> str:
        """Why its type or shape makes no weight; empty if they do."""
        if not self.is_float:
            return f"type {self.dtype}, expected {', '.join(sorted(NUMPY_FLOATS))}"
        return "" if all(self.shape) else f"shape {list(self.shape)} is empty"


@dataclass(frozen=True)
class Tensor(Header):
    """One tensor of a file: its little-endian numbers start at byte `offset`."""

    path: Path
    offset: int

    def floats(self) -> FloatArray:
        """The numbers as float32, read now; what float32 cannot hold becomes infinite."""
        try:
            raw = np.fromfile(self.path, NUMPY_FLOATS[self.dtype], self.size, offset=self.offset)
        except OSError as error:
            raise AfsError(f"cannot be read: {error.strerror}", str(self.path), "check the file") from error
        if raw.size != self.size:
            raise AfsError("the file became shorter while it was read", str(self.path), "copy or download it again")
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        with np.errstate(over="ignore"):
            return raw.astype(np.float32, copy=False).reshape(self.shape)

    def problem(self) -> str:
        """Why no weight can be made of it, its numbers included; empty if one can."""
        return self.form_problem() or not_finite(self.floats())


def not_finite(floats: FloatArray) -> str:
    """How many numbers are NaN or infinite; empty if none is."""
    # The extremes say it without an array of answers as large as the weights.
    if np.isfinite(floats.min()) and np.isfinite(floats.max()):
        return ""
    return f"{int(np.count_nonzero(~np.isfinite(floats)))} of {floats.size} numbers are NaN or infinite"


def read_tensors(path: Path, fix: str) -> dict[str, Tensor]:
    """Every tensor of a file; raises AfsError with `fix` if the file is missing, incomplete or malformed."""
    headers = read_headers(path, fix)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    starts = {name: 8 + length + entries[name]["data_offsets"][0] for name in headers}
    return {name: Tensor(header.dtype, header.shape, path, starts[name]) for name, header in headers.items()}


def read_headers(path: Path, fix: str) -> dict[str, Header]:
    """Types and shapes only: costs nothing, however large the file. Raises as `read_tensors` does."""
    check_present(path, fix)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            return {name: Header(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise malformed(path, error, fix) from error


def check_present(path: Path, fix: str) -> None:
    """Raise for a file that is missing, empty, unreadable or the stand-in that git leaves without git-lfs."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except FileNotFoundError as error:
        raise MissingError("the weights are missing", str(path), fix) from error
    except OSError as error:
        raise AfsError(
            f"the weights cannot be read: {error.strerror}", str(path), "check the path and its rights"
        ) from error
    if start == LFS_POINTER:
        raise AfsError("this is a git-lfs pointer, not the weights", str(path), "run `git lfs pull` in that folder")
    if not start:
        raise AfsError("the file is empty", str(path), fix)


def malformed(path: Path, error: Exception, fix: str) -> AfsError:
    """The error for a file that the safetensors library refuses."""
    size = path.stat().st_size
    return AfsError(f"not a complete safetensors file ({size:,} bytes): {error}", str(path), fix)
