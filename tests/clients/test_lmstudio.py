"""LM Studio's folders as they are found, and models that are in them whole or not at all."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.clients import lmstudio
from afs_mlx.clients.lmstudio import MARKER, PROMPT, Installation, Placed, find_installation, place
from afs_mlx.core.errors import AfsError, ExitCode, MissingError, RefusedError

WEIGHTS = b"weights" * 1000
CONFIG = b'{"model_type": "qwen2"}'


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A home folder without LM Studio."""
    (tmp_path / "user").mkdir()
    return tmp_path / "user"


@pytest.fixture
def installed(user: Path) -> Installation:
    (user / ".lmstudio" / "models").mkdir(parents=True)
    return find_installation(user)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A model of two files, the weights behind a symbolic link as in the Hub's cache."""
    (tmp_path / "source").mkdir()
    (tmp_path / "blob").write_bytes(WEIGHTS)
    (tmp_path / "source" / "model.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "source" / "config.json").write_bytes(CONFIG)
    return {path.name: path for path in (tmp_path / "source").iterdir()}


def put(installed: Installation, files: dict[str, Path], **changes: Any) -> Placed:
    return place(installed, "din-v2", files, {"expert": "din"}, **changes)


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Where it looks


def test_the_usual_folder(user: Path) -> None:
    (user / ".lmstudio").mkdir()
    assert find_installation(user) == Installation(user / ".lmstudio", user / ".lmstudio" / "models")


def test_the_older_folder_comes_first_as_for_lms(user: Path) -> None:
    (user / ".lmstudio").mkdir()
    (user / ".cache" / "lm-studio").mkdir(parents=True)
    assert find_installation(user).home == user / ".cache" / "lm-studio"


def test_the_pointer_wins(user: Path, tmp_path: Path) -> None:
    (user / ".lmstudio").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (user / lmstudio.POINTER).write_text(f"{tmp_path / 'elsewhere'}\n")
    assert find_installation(user).models == tmp_path / "elsewhere" / "models"


@pytest.mark.parametrize("text", [b"", b"\n", b"relative/path\n", b"\xff\xfe\n", b"/there/is/no/such/folder"])
def test_a_pointer_to_nowhere_is_passed_over(user: Path, text: bytes) -> None:
    (user / ".lmstudio").mkdir()
    (user / lmstudio.POINTER).write_bytes(text)
    assert find_installation(user).home == user / ".lmstudio"


def test_the_folder_that_the_settings_name(user: Path, tmp_path: Path) -> None:
    (user / ".lmstudio").mkdir()
    (tmp_path / "disk").mkdir()
    (user / ".lmstudio" / "settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "disk")}))
    assert find_installation(user).models == tmp_path / "disk"


def test_a_disk_that_is_not_connected(user: Path, tmp_path: Path) -> None:
    (user / ".lmstudio").mkdir()
    (user / ".lmstudio" / "settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "gone")}))
    with pytest.raises(MissingError, match="folder of models is not there") as caught:
        find_installation(user)
    assert str(tmp_path / "gone") in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"), [("{", "not valid JSON"), ('{"downloadsFolder": "models"}', "no full path")]
)
def test_settings_that_make_no_sense(user: Path, settings: str, message: str) -> None:
    (user / ".lmstudio").mkdir()
    (user / ".lmstudio" / "settings.json").write_text(settings)
    with pytest.raises(AfsError, match=message):
        find_installation(user)


def test_not_installed_names_every_folder(user: Path) -> None:
    (user / lmstudio.POINTER).write_text("/gone/lm-studio\n")
    with pytest.raises(MissingError) as caught:
        find_installation(user)
    assert caught.value.code == ExitCode.MISSING
    for folder in ("/gone/lm-studio", str(user / ".cache" / "lm-studio"), str(user / ".lmstudio")):
        assert folder in str(caught.value)


# What is placed


def test_weights_are_hard_links_and_the_rest_is_copied(
    installed: Installation, files: dict[str, Path], tmp_path: Path
) -> None:
    placed = put(installed, files, system="You are Din.")
    assert placed.path == installed.models / "afs-mlx" / "din-v2"
    assert placed.key == "afs-mlx/din-v2"
    assert below(placed.path) == {"model.safetensors", "config.json", MARKER, PROMPT}
    assert (placed.path / "model.safetensors").samefile(tmp_path / "blob")
    assert not (placed.path / "model.safetensors").is_symlink()
    assert not (placed.path / "config.json").samefile(files["config.json"])
    assert (placed.linked_bytes, placed.copied_bytes) == (len(WEIGHTS), len(CONFIG))
    assert placed.prompt is not None
    assert placed.prompt.read_text() == "You are Din.\n"
    marker = json.loads((placed.path / MARKER).read_text())
    assert marker == {"expert": "din", "files": ["config.json", "model.safetensors"], "copied": False}


def test_copies_stand_alone(installed: Installation, files: dict[str, Path], tmp_path: Path) -> None:
    placed = put(installed, files, copy=True)
    assert (placed.linked_bytes, placed.copied_bytes) == (0, len(WEIGHTS) + len(CONFIG))
    assert not (placed.path / "model.safetensors").samefile(tmp_path / "blob")
    assert (placed.path / "model.safetensors").read_bytes() == WEIGHTS
    assert placed.prompt is None


def test_what_we_placed_is_replaced_whole(installed: Installation, files: dict[str, Path]) -> None:
    assert not put(installed, files, system="old").replaced
    del files["config.json"]
    again = put(installed, files)
    assert again.replaced
    assert below(again.path) == {"model.safetensors", MARKER}
    assert below(installed.models) == {"afs-mlx", "afs-mlx/din-v2", *(f"afs-mlx/din-v2/{x}" for x in below(again.path))}


def test_what_others_placed_is_refused_unless_forced(installed: Installation, files: dict[str, Path]) -> None:
    theirs = installed.models / "afs-mlx" / "din-v2"
    theirs.mkdir(parents=True)
    (theirs / "model.gguf").write_bytes(b"theirs")
    with pytest.raises(RefusedError, match="did not place") as caught:
        put(installed, files)
    assert caught.value.code == ExitCode.REFUSED
    assert below(theirs) == {"model.gguf"}
    assert put(installed, files, force=True).replaced
    assert not (theirs / "model.gguf").exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_what_is_no_folder_is_never_replaced(
    installed: Installation, files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    target = installed.models / "afs-mlx" / "din-v2"
    target.parent.mkdir()
    if kind == "file":
        target.write_text("theirs")
    else:
        target.symlink_to(tmp_path / ("source" if kind == "link" else "nowhere"))
    with pytest.raises(RefusedError, match="remove it yourself"):
        put(installed, files, force=True)
    assert target.is_symlink() == (kind != "file")


def test_another_disk_asks_for_a_copy(
    installed: Installation, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(AfsError, match="another disk") as caught:
        put(installed, files)
    assert "--copy" in caught.value.fix
    assert below(installed.models) == {"afs-mlx"}
    assert put(installed, files, copy=True).path.is_dir()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [False, True])
def test_what_ends_in_the_middle_changes_nothing(
    installed: Installation,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    there: bool,
) -> None:
    """Full, or interrupted, with the first file there and the second half written."""
    if there:
        put(installed, files, system="before")
    before = below(installed.models)
    copied = shutil.copyfile

    def half(source: Path, target: Path) -> None:
        copied(source, target)
        raise error

    monkeypatch.setattr(shutil, "copyfile", half)
    expected = AfsError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        put(installed, files, copy=True)
    assert below(installed.models) | {"afs-mlx"} == before | {"afs-mlx"}
    if there:
        assert (installed.models / "afs-mlx" / "din-v2" / PROMPT).read_text() == "before\n"


def test_a_source_that_is_gone_is_named(installed: Installation, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "blob").unlink()
    with pytest.raises(AfsError, match="cannot write"):
        put(installed, files)
    assert below(installed.models) == {"afs-mlx"}


def test_what_is_killed_in_the_middle_has_no_name_and_is_swept_up(
    installed: Installation, files: dict[str, Path]
) -> None:
    program = """
import os, shutil, signal, sys
from pathlib import Path
from afs_mlx.clients.lmstudio import find_installation, place
shutil.copyfile = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
place(find_installation(Path(sys.argv[1])), "din-v2", {"config.json": Path(sys.argv[2])}, {})
"""
    arguments = [str(installed.home.parent), str(files["config.json"])]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    publisher = installed.models / "afs-mlx"
    (left,) = publisher.iterdir()
    assert left.name.startswith(".din-v2.")
    put(installed, files)
    assert [path.name for path in publisher.iterdir()] == ["din-v2"]
