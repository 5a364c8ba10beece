"""Rows of floats in one memory-mapped file of the cache folder, whole or not there."""

import contextlib
import os
from pathlib import Path

import mlx.core as mx
import numpy as np

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import disk_error


class RowFile:
    """Rows of floats by number. A new one is `<key>.PID.part` until it is whole, then `<key>.bin`."""

    def __init__(self, path: Path, starts: dict[int, tuple[int, int]], dtype: mx.Dtype) -> None:
        self._path, self._starts, self._dtype = path, starts, dtype
        elements = max(end for _, end in starts.values())
        # numpy has no bfloat16: 16-bit floats are kept as the integers that their bits make.
        integer = np.uint32 if dtype.size == 4 else np.uint16
        self._integers = mx.uint32 if dtype.size == 4 else mx.uint16
        self._map = np.memmap(path, dtype=integer, mode="r+", shape=(elements,))

    @classmethod
    def open(cls, folder: Path, key: str, elements: dict[int, int], dtype: mx.Dtype, disk_bytes: int) -> "RowFile":
        """The file of `key`, whole from an earlier run or new; others make room for it within `disk_bytes`.

        Raises AfsError when the disk is full.
        """
        starts, end = dict[int, tuple[int, int]](), 0
        for row, count in elements.items():
            starts[row] = (end, end + count)
            end += count
        path, size = folder / f"{key}.bin", end * dtype.size
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (path.is_file() and path.stat().st_size == size):
                _make_room(folder, disk_bytes - size)
                path = folder / f"{key}.{os.getpid()}.part"
                _reserve(path, size)
            path.touch()  # the newest stay longest
            return cls(path, starts, dtype)
        except OSError as error:
            found = disk_error(error, path)
            fix = f"{found.fix}; or keep less there: --set speed.disk_gb=0"
            raise AfsError(found.what, found.where, fix) from error

    @property
    def whole(self) -> bool:
        """Whether every row is there."""
        return self._path.suffix == ".bin"

    def write(self, row: int, hidden: mx.array) -> None:
        start, end = self._starts[row]
        self._map[start:end] = np.array(mx.view(hidden, self._integers)).reshape(-1)

    def read(self, row: int) -> mx.array:
        start, end = self._starts[row]
        return mx.view(mx.array(self._map[start:end]), self._dtype)

    def finish(self) -> None:
        """All rows are written: from now on others may find the file."""
        whole = self._path.with_name(f"{self._path.name.split('.')[0]}.bin")
        try:
            self._map.flush()
            self._path.replace(whole)
        except OSError as error:
            raise disk_error(error, whole) from error
        self._path = whole


def _reserve(path: Path, size: int) -> None:
    """Take the space now: a full disk met through a memory map is a signal that ends the process."""
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS: written, since a hole would not be space
                block = bytes(1 << 20)
                for start in range(0, size, len(block)):
                    file.write(block[: min(len(block), size - start)])
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _make_room(folder: Path, limit: int) -> None:
    """Remove what dead processes left half, and the files used longest ago until the rest takes at most `limit`."""
    for half in folder.glob("*.part"):
        if not _lives(half.suffixes[-2][1:] if len(half.suffixes) > 1 else ""):
            half.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        files = sorted(folder.glob("*.bin"), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in files)
        for file in files:
            if total <= limit:
                return
            total -= file.stat().st_size
            file.unlink()


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
