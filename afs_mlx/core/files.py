"""Files that are either whole or absent: atomic writes of text, JSON and folders, and checksums."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_error(error: OSError, path: Path) -> AfsError:
    """The remedy for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(existing_parent(path)).free
        return AfsError(
            f"the disk is full ({free / 1e6:.0f} MB free)",
            str(path),
            "free some space, or move the workspace with AFS_MLX_HOME; nothing that was there before has been changed",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AfsError("no permission to write", str(path), "check the folder's rights, or set AFS_MLX_HOME")
    return AfsError(f"cannot write: {error.strerror or error}", str(path), "check the path and try again")


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    for folder in (path, *path.parents):
        if folder.is_dir():
            return folder
    return Path("/")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; on success it is synced and renamed to `path`, else removed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last: mx.save_safetensors and others append one that they do not find.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(descriptor)
    except OSError as error:
        raise disk_error(error, path) from error
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; `what` names it in the error."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AfsError(f"{what} is missing", str(path), "check the path") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of thousands of digits, too deep
        raise AfsError(f"{what} is not valid JSON: {error}", str(path), "mend or remake the file") from error
    except OSError as error:
        raise AfsError(
            f"{what} cannot be read: {error.strerror}", str(path), "check the path and its rights"
        ) from error
    if not isinstance(value, dict):
        raise AfsError(f"{what} is not a JSON object", str(path), "mend or remake the file")
    return value


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new folder beside `path`, sync it and swap it in whole; one that was there stays until then."""
    if path.exists() and not path.is_dir():
        raise AfsError("a file stands where a folder is to be written", str(path), "move it, or name another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise disk_error(error, path) from error
    old = temporary.with_name(temporary.name + ".old")
    try:
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.chmod(0o755)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if old.exists() and not path.exists():  # also when interrupted between the two renames
            old.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:  # a copied file may be read-only
        os.fsync(file.fileno())


def folder_size_bytes(path: Path) -> int:
    """The size of all files below a folder, links counted as what they point to."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
