"""What the header of a GGUF says of its tensors, read without what is said of the vocabulary.

The `gguf` package's reader makes an object of every token, which takes seconds for a vocabulary of 150,000; this one
steps over the metadata. Of the format it knows what the writer uses: version 3, little-endian.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType

from afs_mlx.core.errors import AfsError

VERSION = 3
ALIGNMENT_KEY = b"general.alignment"
DEFAULT_ALIGNMENT = 32
MOST_AXES = 4
SIZES = {
    **dict.fromkeys((GGUFValueType.UINT8, GGUFValueType.INT8, GGUFValueType.BOOL), 1),
    **dict.fromkeys((GGUFValueType.UINT16, GGUFValueType.INT16), 2),
    **dict.fromkeys((GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32), 4),
    **dict.fromkeys((GGUFValueType.UINT64, GGUFValueType.INT64, GGUFValueType.FLOAT64), 8),
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
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            infos = _Header(data).tensors()
            size = len(data)
    except (struct.error, ValueError, KeyError, RecursionError) as error:
        raise AfsError(f"not a readable GGUF file: {error}", str(path), "check the disk and export again") from error
    end = 0
    for name, info in infos.items():
        if info.offset < end or info.offset + info.size_bytes > size:
            raise AfsError(f"{name}: its bytes overlap or leave the file", str(path), "export again")
        end = info.offset + info.size_bytes
    return infos


class _Header:
    """A place in the bytes of a file; struct.error where they end too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def tensors(self) -> dict[str, TensorInfo]:
        magic, version, tensors, keys = self._take("<IIQQ")
        if magic != GGUF_MAGIC or version != VERSION:
            raise ValueError(f"magic {magic:#x}, version {version}")
        alignment = DEFAULT_ALIGNMENT
        for _ in range(keys):
            key = self._text()
            (kind,) = self._take("<I")
            if key == ALIGNMENT_KEY:
                (alignment,) = struct.unpack_from("<I", self.data, self.at)
            self._skip(GGUFValueType(kind))
        found = [self._tensor() for _ in range(tensors)]
        start = math.ceil(self.at / alignment) * alignment
        return {
            name: TensorInfo(kind, shape, start + offset, _size_bytes(kind, shape))
            for name, kind, shape, offset in found
        }

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
        return self.data[self.at - length : self.at]

    def _skip(self, kind: GGUFValueType) -> None:
        if kind == GGUFValueType.STRING:
            (length,) = self._take("<Q")
            self.at += length
        elif kind == GGUFValueType.ARRAY:
            inner, count = self._take("<IQ")
            if (size := SIZES.get(GGUFValueType(inner))) is not None:
                self.at += size * count
            else:
                for _ in range(count):
                    self._skip(GGUFValueType(inner))
        else:
            self.at += SIZES[kind]


def _size_bytes(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size
