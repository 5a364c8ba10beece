"""What the header of a GGUF says: its tensors, and its keys as plain values.

The `gguf` package's reader makes several arrays of every token, which takes seconds for a vocabulary of 150,000; this
one steps over the keys or makes lists of them. Of the format it knows what the writer uses: version 3, little-endian.
"""

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType

from afs_mlx.core.errors import AfsError

VERSION = 3
ALIGNMENT_KEY = b"general.alignment"
DEFAULT_ALIGNMENT = 32
MOST_AXES = 4
_K = GGUFValueType
NUMBERS: dict[GGUFValueType, np.dtype[Any]] = {
    kind: np.dtype(code)
    for kind, code in (
        (_K.UINT8, "u1"),
        (_K.INT8, "i1"),
        (_K.BOOL, "?"),
        (_K.UINT16, "<u2"),
        (_K.INT16, "<i2"),
        (_K.UINT32, "<u4"),
        (_K.INT32, "<i4"),
        (_K.FLOAT32, "<f4"),
        (_K.UINT64, "<u8"),
        (_K.INT64, "<i8"),
        (_K.FLOAT64, "<f8"),
    )
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: shape as numpy counts axes, and where its bytes lie."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def read_tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """Every tensor by name, in file order.

    Raises AfsError for a file that is cut off, of another version, or whose tensors overlap or leave the file.
    """
    infos, size = _read(path, lambda header: (header.tensors(), len(header.data)))
    end = 0
    for name, info in infos.items():
        if info.offset < end or info.offset + info.size_bytes > size:
            raise AfsError(f"{name}: its bytes overlap or leave the file", str(path), "export again")
        end = info.offset + info.size_bytes
    return infos


def read_fields(path: Path) -> dict[str, Any]:
    """Every key with its value: a number, a truth value, a text or a list of these. Raises as `read_tensor_infos`."""
    return _read(path, lambda header: header.fields())


def _read[Found](path: Path, of: Callable[["_Header"], Found]) -> Found:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return of(_Header(data))
    except (struct.error, ValueError, KeyError, RecursionError, OverflowError, ZeroDivisionError) as error:
        raise AfsError(f"not a readable GGUF file: {error}", str(path), "check the disk and export again") from error


class _Header:
    """A place in the bytes of a file; struct.error where they end too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def fields(self) -> dict[str, Any]:
        _, keys = self._counts()
        found = {}
        for _ in range(keys):
            key = self._text().decode()
            (kind,) = self._take("<I")
            if key in found:
                raise ValueError(f"{key} is given twice")
            found[key] = self._value(GGUFValueType(kind))
        return found

    def tensors(self) -> dict[str, TensorInfo]:
        tensors, keys = self._counts()
        alignment = DEFAULT_ALIGNMENT
        for _ in range(keys):
            key = self._text()
            (kind,) = self._take("<I")
            if key == ALIGNMENT_KEY:
                (alignment,) = struct.unpack_from("<I", self.data, self.at)
            self._skip(GGUFValueType(kind))
        if self.at > len(self.data):
            raise ValueError("a key leaves the file")
        found = [self._tensor() for _ in range(tensors)]
        if len({name for name, *_ in found}) != len(found):
            raise ValueError("a tensor is given twice")
        start = math.ceil(self.at / alignment) * alignment
        return {
            name: TensorInfo(kind, shape, start + offset, _size_bytes(kind, shape))
            for name, kind, shape, offset in found
        }

    def _counts(self) -> tuple[int, int]:
        """How many tensors and keys there are."""
        magic, version, tensors, keys = self._take("<IIQQ")
        if magic != GGUF_MAGIC or version != VERSION:
            raise ValueError(f"magic {magic:#x}, version {version}")
        return tensors, keys

    def _tensor(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        name = self._text().decode()
        (axes,) = self._take("<I")
        if axes > MOST_AXES:
            raise ValueError(f"{name} has {axes} axes")
        shape = self._take(f"<{axes}Q")
        kind, offset = self._take("<IQ")
        return name, GGMLQuantizationType(kind), tuple(reversed(shape)), offset

    def _take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def _text(self) -> bytes:
        (length,) = self._take("<Q")
        self.at += length
        if self.at > len(self.data):
            raise ValueError("a text leaves the file")
        return self.data[self.at - length : self.at]

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text().decode()
        if kind == GGUFValueType.ARRAY:
            inner, count = self._take("<IQ")
            if (number := NUMBERS.get(GGUFValueType(inner))) is not None:
                return self._numbers(number, count)
            return [self._value(GGUFValueType(inner)) for _ in range(count)]
        return self._numbers(NUMBERS[kind], 1)[0]

    def _numbers(self, number: np.dtype[Any], count: int) -> list[Any]:
        values: list[Any] = np.frombuffer(self.data, number, count, self.at).tolist() if count else []
        self.at += number.itemsize * count
        return values

    def _skip(self, kind: GGUFValueType) -> None:
        if kind == GGUFValueType.STRING:
            (length,) = self._take("<Q")
            self.at += length
        elif kind == GGUFValueType.ARRAY:
            inner, count = self._take("<IQ")
            if (number := NUMBERS.get(GGUFValueType(inner))) is not None:
                self.at += number.itemsize * count
            else:
                for _ in range(count):
                    self._skip(GGUFValueType(inner))
        else:
            self.at += NUMBERS[kind].itemsize


def _size_bytes(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size
