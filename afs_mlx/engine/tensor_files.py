"""Writing safetensors so that a full disk reads like one. Imports no mlx."""

import errno
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]], metadata: dict[str, str]) -> None:
    """Write arrays to a file. Raises OSError for a failed write, which safetensors reports as an error of its own."""
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = errno.ENOSPC if "space" in str(error) else errno.EIO
        raise OSError(number, str(error)) from error


def stream_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterator[np.ndarray[Any, np.dtype[np.float32]]],
    metadata: dict[str, str],
) -> None:
    """Write float32 arrays one by one, in the order of `shapes`: one is written while the next is made.

    Raises OSError for a failed write, ValueError for an array of another shape or number than announced.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers start aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), array in zip(shapes.items(), _ahead(arrays), strict=True):
            if array.shape != shape:
                raise ValueError(f"{name}: {array.shape}, announced as {shape}")
            file.write(array.data)


def _ahead(arrays: Iterator[np.ndarray[Any, Any]]) -> Iterator[np.ndarray[Any, Any]]:
    """The arrays laid out row by row, each made in a second thread while the one before it is in use."""
    memory = [np.empty(0, "<f4"), np.empty(0, "<f4")]  # fresh memory for each array would cost as much as the copying

    def following(turn: int) -> np.ndarray[Any, Any] | None:
        array = next(arrays, None)
        if array is None:
            return None
        if memory[turn].size < array.size:
            memory[turn] = np.empty(array.size, "<f4")
        laid_out = memory[turn][: array.size].reshape(array.shape)
        laid_out[...] = array
        return laid_out

    with ThreadPoolExecutor(1) as pool:
        turn = 0
        future = pool.submit(following, turn)
        while (array := future.result()) is not None:
            turn = 1 - turn
            future = pool.submit(following, turn)
            yield array
