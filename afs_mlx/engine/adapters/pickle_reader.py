"""Tensors of a torch.save file (.bin), read without executing anything in it: no pickle module, no torch.

The file is a zip of one pickle, which `pickle_machine` walks, and the storages as they lie in memory. Nothing is
unpacked to disk.
"""

import re
import struct
import zipfile
from pathlib import Path

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.pickle_machine import UnsafePickleError, View, unpickle
from afs_mlx.engine.adapters.tensors import Tensor, check_present

MEMBER = re.compile(
    r"(?P<root>[^/\\\0]{1,200})/(?P<rest>data\.pkl|data/\d{1,9}|byteorder|version|\.[a-z_]+(/[a-z_]+)?)"
)
MAX_PICKLE_BYTES = 16 * 2**20
MAX_MEMBERS = 200_000
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def read_pickle(path: Path, fix: str) -> dict[str, Tensor]:
    """Every tensor of a .bin file. Raises AfsError for one that is damaged, or asks for more than tensors."""
    check_present(path, fix)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            pickle = archive.read(members["data.pkl"])
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged: its checksum does not fit")
            if "byteorder" in members and archive.read(members["byteorder"]).strip() != b"little":
                raise UnsafePickleError("it is big-endian")
        state = unpickle(pickle)
        places = {name: _place(path, member) for name, member in members.items()}
        if not isinstance(state, dict):
            raise UnsafePickleError(f"it holds a {type(state).__name__.strip('_')}, not a dictionary of tensors")
        return {str(name): _tensor(str(name), value, path, places) for name, value in state.items()}
    except UnsafePickleError as error:
        raise AfsError(f"this pickle is refused, and nothing in it was executed: {error}", str(path), fix) from error
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, struct.error, EOFError, NotImplementedError) as error:
        what = "not a complete file of torch.save in its zip format (torch 1.6 or later)"
        raise AfsError(f"{what}: {str(error) or type(error).__name__}", str(path), fix) from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by their name within the one folder torch makes; stored as they are, none over another."""
    found: dict[str, zipfile.ZipInfo] = {}
    roots = set()
    if len(archive.infolist()) > MAX_MEMBERS:
        raise UnsafePickleError(f"the zip has {len(archive.infolist())} members")
    for info in archive.infolist():
        match = MEMBER.fullmatch(info.orig_filename)
        if match is None or match["root"] in (".", ".."):
            raise UnsafePickleError(f"the zip has a member {info.orig_filename[:200]!r}, which torch does not write")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise UnsafePickleError(f"the zip's member {info.filename!r} is packed; torch stores its members plainly")
        if match["rest"] in found:
            raise UnsafePickleError(f"the zip's member {info.filename!r} is there twice")
        roots.add(match["root"])
        found[match["rest"]] = info
    if len(roots) != 1 or "data.pkl" not in found:
        raise UnsafePickleError("the zip holds no data.pkl, or several folders")
    if found["data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise UnsafePickleError(f"data.pkl has {found['data.pkl'].file_size:,} bytes")
    return found


def _place(path: Path, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where in the file a stored member's bytes begin, and how many there are."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("a member's header is not where the list says")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    if start + info.file_size > path.stat().st_size:
        raise zipfile.BadZipFile("a member reaches beyond the end of the file")
    return start, info.file_size


def _tensor(name: str, value: object, path: Path, places: dict[str, tuple[int, int]]) -> Tensor:
    if not isinstance(value, View):
        raise UnsafePickleError(f"{name[:200]!r} is no tensor")
    storage = value.storage
    if f"data/{storage.key}" not in places:
        raise UnsafePickleError(f"the numbers of {name[:200]!r} are not in the file")
    start, length = places[f"data/{storage.key}"]
    width = ITEM_BYTES[storage.dtype]
    size, stride = 1, []
    for side in reversed(value.shape):
        stride.append(size)
        size *= side
    if size > 1 and any(
        s != t for s, t, side in zip(value.stride, reversed(stride), value.shape, strict=True) if side > 1
    ):
        raise UnsafePickleError(f"{name[:200]!r} does not lie row by row; save it again with .contiguous()")
    if value.offset < 0 or storage.size * width > length or value.offset + size > storage.size:
        raise UnsafePickleError(f"{name[:200]!r} reaches beyond its numbers")
    return Tensor(storage.dtype, value.shape, path, start + value.offset * width)
