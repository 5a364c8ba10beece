"""Files are whole or absent, whatever interrupts the writing."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import (
    atomic_path,
    disk_error,
    existing_parent,
    folder_size_bytes,
    read_json,
    sha256_of,
    write_folder,
    write_json,
    write_text,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_sha256_of(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # FIPS 180-4's example.
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(bytes(3_000_000))
    assert sha256_of(path) == hashlib.sha256(bytes(3_000_000)).hexdigest()


def test_a_write_makes_its_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    write_json(path, {"Ω": "✓"})
    assert path.read_text(encoding="utf-8") == '{\n  "Ω": "✓"\n}\n'
    assert names_in(path.parent) == ["c.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_temporary_name_keeps_the_suffix_and_the_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "w.safetensors") as temporary:
        assert (temporary.suffix, temporary.parent) == (".safetensors", tmp_path)
        temporary.write_text("x")


def test_nothing_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError("crash"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_crash_in_the_middle_leaves_the_old_file_whole(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    expected = AfsError if isinstance(error, OSError) else type(error)

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("ha")
            raise error

    with pytest.raises(expected):
        write()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_the_sync_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(AfsError, match=r"the disk is full \(\d+ MB free\)") as caught:
        write_text(path, "new")
    assert "AFS_MLX_HOME" in caught.value.fix
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_the_data_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    seen: list[tuple[bytes, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((os.pread(descriptor, 100, 0), path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "new")
    assert seen == [(b"new", False)]


def test_a_value_that_is_not_json_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    with pytest.raises(TypeError):
        write_json(path, {"x": {1, 2}})
    assert path.read_text() == "{}"
    assert names_in(tmp_path) == ["a.json"]


def test_text_that_is_not_unicode_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(AfsError, match="no permission to write"):
            write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_errors_of_the_disk_name_their_remedy(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "there"
    for number in (errno.EACCES, errno.EPERM, errno.EROFS):
        assert disk_error(OSError(number, "no"), path).what == "no permission to write"
    other = disk_error(OSError(errno.EIO, "Input/output error"), path)
    assert other.what == "cannot write: Input/output error"
    assert other.where == str(path)
    assert "MB free" in disk_error(OSError(errno.ENOSPC, "full"), path).what


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(AfsError, match="cannot write"):
        write_text(tmp_path / "a" / "b.txt", "x")


def test_existing_parent(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "x" / "y") == tmp_path
    assert existing_parent(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON: 'utf-8' codec"),
        (b"[1]", "is not a JSON object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"a": ' + b"[" * 200_000, "is not valid JSON"),
    ],
)
def test_bad_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(AfsError, match=message) as caught:
        read_json(path, "the index")
    assert caught.value.what.startswith("the index")
    assert caught.value.where == str(path)


def test_json_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match="the index is missing"):
        read_json(tmp_path / "none.json", "the index")
    with pytest.raises(AfsError, match="the index cannot be read"):
        read_json(tmp_path, "the index")


def old_folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.txt").write_text("old")
    return path


def test_write_folder_swaps_the_whole_folder(tmp_path: Path) -> None:
    path = old_folder(tmp_path)
    write_folder(path, lambda folder: write_text(folder / "new.txt", "new"))
    assert names_in(path) == ["new.txt"]
    assert names_in(tmp_path) == ["model"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_write_folder_makes_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    write_folder(path, lambda folder: write_json(folder / "m.json", {}))
    assert json.loads((path / "m.json").read_text()) == {}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AfsError("bad tensor"), AfsError),
        (RuntimeError("crash"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "full"), AfsError),
    ],
)
def test_write_folder_keeps_the_old_one_when_fill_raises(
    tmp_path: Path, error: BaseException, expected: type[BaseException]
) -> None:
    path = old_folder(tmp_path)

    def fill(folder: Path) -> None:
        (folder / "half.txt").write_text("ha")
        raise error

    with pytest.raises(expected):
        write_folder(path, fill)
    assert (path / "old.txt").read_text() == "old"
    assert names_in(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "io"), KeyboardInterrupt()])
def test_write_folder_puts_the_old_one_back_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = old_folder(tmp_path)
    real = Path.replace
    calls: list[Path] = []

    def replace(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises((AfsError, KeyboardInterrupt)):
        write_folder(path, lambda folder: (folder / "new.txt").write_text("new") and None)
    assert (path / "old.txt").read_text() == "old"
    assert names_in(tmp_path) == ["model"]


def test_write_folder_syncs_its_files_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure a renamed folder must not hold empty files."""
    path = old_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))

    def fill(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "new.bin").write_bytes(b"x")
        (folder / "sub" / "new.bin").chmod(0o400)

    with pytest.raises(AfsError, match="the disk is full"):
        write_folder(path, fill)
    assert names_in(path) == ["old.txt"]
    monkeypatch.undo()
    write_folder(path, fill)
    assert (path / "sub" / "new.bin").read_bytes() == b"x"


def test_write_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(AfsError, match="a file stands where a folder"):
        write_folder(path, lambda folder: None)
    assert path.read_text() == "mine"
    assert names_in(tmp_path) == ["notes.txt"]


def test_folder_size_counts_what_links_point_to(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "blob").write_bytes(bytes(100))
    (folder / "link").symlink_to(tmp_path / "blob")
    (folder / "sub" / "a").write_bytes(bytes(11))
    assert folder_size_bytes(folder) == 111
