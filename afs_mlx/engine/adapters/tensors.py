"""Safetensors that others made. Rust's parser decides what is well formed; mlx's own accepts files that crash it.

Knows nothing of adapters: names, types and numbers only.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from afs_mlx.core.errors import AfsError, MissingError

type FloatArray = np.ndarray[Any, np.dtype[np.float32]]

NUMPY_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Header:
    """One tensor as a file announces it: its type in the format's spelling (`F32`, `BF16`, `U32`) and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tensor(Header):
    """One tensor with its little-endian bytes."""

    data: bytes | bytearray

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether `floats` can read it."""
        return self.dtype == "BF16" or self.dtype in NUMPY_FLOATS

    def floats(self) -> FloatArray:
        """The numbers as float32; what float32 cannot hold becomes infinite."""
        if self.dtype == "BF16":  # the upper half of a float32; numpy has no such type
            bits = np.frombuffer(self.data, "<u2").astype(np.uint32) << 16
            return bits.view(np.float32).reshape(self.shape)
        with np.errstate(over="ignore"):
            return np.frombuffer(self.data, NUMPY_FLOATS[self.dtype]).astype(np.float32).reshape(self.shape)

    def problem(self) -> str:
        """Why no weight can be made of it; empty if one can."""
        if not self.is_float:
            return f"type {self.dtype}, expected BF16, {', '.join(sorted(NUMPY_FLOATS))}"
        if not all(self.shape):
            return f"shape {list(self.shape)} is empty"
        bad = int(np.count_nonzero(~np.isfinite(self.floats())))
        return f"{bad} of {self.size} numbers are NaN or infinite" if bad else ""


def read_tensors(path: Path, fix: str) -> dict[str, Tensor]:
    """Every tensor of a file; raises AfsError with `fix` if the file is missing, incomplete or malformed."""
    check_present(path, fix)
    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise malformed(path, error, fix) from error
    return {name: Tensor(entry["dtype"], tuple(entry["shape"]), entry["data"]) for name, entry in entries}


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
