"""Writing safetensors so that a full disk reads like one. Imports no mlx."""

import errno
from collections.abc import Mapping
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
