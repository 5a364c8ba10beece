"""A model's safetensors written tensor by tensor, in shards with an index. Knows nothing of fusing."""

import json
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from afs_mlx.core.files import write_json

INDEX = "model.safetensors.index.json"
DTYPES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.uint8: "U8",
    mx.int32: "I32",
    mx.int64: "I64",
}
ENTRY_BYTES = 120  # one tensor's entry in a header, without its name


class Shards:
    """Writes `model.safetensors`, or `model-00001-of-…` where more than `limit_bytes` come together.

    A header stands before its numbers, and is not known before the last of them: room for all `names` that may come is
    left, and what stays of it filled with spaces, which the format allows.
    """

    def __init__(self, folder: Path, limit_bytes: int, names: list[str]) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes
        room = 100 + sum(len(json.dumps(name)) + ENTRY_BYTES for name in names)
        self._header_bytes = room + -room % 8
        self._headers: list[dict[str, Any]] = [{}]
        self._file = self._begin()
        self._end = 0

    def add(self, name: str, array: np.ndarray, dtype: mx.Dtype) -> None:
        """Write one tensor: its bytes as they are, under the type that they stand for."""
        if self._end and self._end + array.nbytes > self._limit_bytes:
            self._finish()
            self._headers.append({})
            self._file, self._end = self._begin(), 0
        self._file.write(np.ascontiguousarray(array).data)
        place = [self._end, self._end + array.nbytes]
        self._headers[-1][name] = {"dtype": DTYPES[dtype], "shape": list(array.shape), "data_offsets": place}
        self._end = place[1]

    def close(self, parameters: int) -> None:
        """Finish, give the files their names, which say how many there are, and write the index."""
        self._finish()
        count, total = len(self._headers), 0
        weight_map: dict[str, str] = {}
        for number, header in enumerate(self._headers, start=1):
            name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            self._path(number).rename(self._folder / name)
            weight_map |= dict.fromkeys(header, name)
            total += max(entry["data_offsets"][1] for entry in header.values())
        metadata = {"total_size": total, "total_parameters": parameters}
        write_json(self._folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})

    def _begin(self) -> BinaryIO:
        file = self._path(len(self._headers)).open("wb")
        file.write(b" " * (8 + self._header_bytes))
        return file

    def _finish(self) -> None:
        header = json.dumps({"__metadata__": {"format": "mlx"}, **self._headers[-1]}, separators=(",", ":")).encode()
        self._file.seek(0)
        self._file.write(self._header_bytes.to_bytes(8, "little") + header)
        self._file.close()

    def _path(self, number: int) -> Path:
        return self._folder / f"shard-{number:05d}"
