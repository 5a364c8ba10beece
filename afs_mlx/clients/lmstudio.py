"""LM Studio's folders: where it looks for models, and putting one there whole. Knows nothing of experts or runs.

Weights are hard links, since LM Studio does not find models behind symbolic links on every system and stops at a link
whose target is gone (its bug tracker, issues 76, 97, 263 and 747). A hard link is a file like any other.
"""

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError, MissingError, RefusedError
from afs_mlx.core.files import read_json, write_folder, write_json, write_text

PUBLISHER = "afs-mlx"
MARKER = "afs-mlx.json"  # what we placed carries it
PROMPT = "system-prompt.txt"
POINTER = ".lmstudio-home-pointer"
WEIGHTS = (".safetensors", ".gguf")  # the rest is small, and copied: an editor there must not change ours


@dataclass(frozen=True)
class Installation:
    """LM Studio on this machine: its own folder, and the one that it keeps models in."""

    home: Path
    models: Path


@dataclass(frozen=True)
class Placed:
    """A model where LM Studio finds it. `linked_bytes` are shared with the source, `copied_bytes` are not."""

    path: Path
    key: str
    files: tuple[str, ...]
    linked_bytes: int
    copied_bytes: int
    prompt: Path | None
    replaced: bool


def find_installation(user: Path | None = None) -> Installation:
    """Where LM Studio keeps its models; `user` is the home folder to look in.

    In the order of LM Studio's own `lms`: the folder that ~/.lmstudio-home-pointer names, ~/.cache/lm-studio,
    ~/.lmstudio; within it `downloadsFolder` of settings.json, else models. Raises MissingError naming what was tried.
    """
    user = user or Path.home()
    pointer = user / POINTER
    named = _first_line(pointer)
    candidates = [Path(named)] if named and Path(named).is_absolute() else []
    candidates += [user / ".cache" / "lm-studio", user / ".lmstudio"]
    home = next((path for path in candidates if path.is_dir()), None)
    if home is None:
        tried = ", ".join(map(str, candidates))
        raise MissingError("LM Studio is not installed here", tried, "start LM Studio once, then place the model again")
    settings = home / "settings.json"
    folder = read_json(settings, "LM Studio's settings").get("downloadsFolder") if settings.is_file() else None
    models = Path(folder).expanduser() if isinstance(folder, str) and folder else home / "models"
    if not models.is_absolute():
        raise AfsError(f"downloadsFolder is no full path: {folder!r}", str(settings), "choose the folder in LM Studio")
    if models != home / "models" and not models.is_dir():
        raise MissingError("LM Studio's folder of models is not there", str(models), "connect the disk that it is on")
    return Installation(home, models)


def place(
    installation: Installation,
    name: str,
    files: Mapping[str, Path],
    record: Mapping[str, Any],
    *,
    system: str = "",
    copy: bool = False,
    force: bool = False,
) -> Placed:
    """Put files, name → source, into <models>/afs-mlx/<name>/, with a marker that holds `record`.

    One that we placed before is replaced whole; anything else there is refused (exit 4) unless `force`. Raises AfsError
    where a hard link is not possible, for a full disk and for a source that is gone; nothing is then at that name.
    """
    target = installation.models / PUBLISHER / name
    replaced = _check_free(target, force=force)
    sizes = {True: 0, False: 0}

    def fill(folder: Path) -> None:
        for file, source in files.items():
            link = not copy and source.suffix in WEIGHTS
            (_link if link else _copy)(source, folder / file)
            sizes[link] += source.stat().st_size
        if system:
            write_text(folder / PROMPT, system + "\n")
        write_json(folder / MARKER, {**record, "files": sorted(files), "copied": copy})

    write_folder(target, fill)
    for left in target.parent.glob(f".{name}.*"):  # of a placing that was killed; the folder is ours alone
        shutil.rmtree(left, ignore_errors=True)
    return Placed(
        path=target,
        key=f"{PUBLISHER}/{name}",
        files=tuple(sorted(files)),
        linked_bytes=sizes[True],
        copied_bytes=sizes[False],
        prompt=target / PROMPT if system else None,
        replaced=replaced,
    )


def _check_free(target: Path, *, force: bool) -> bool:
    """Whether something is there to be replaced; raises RefusedError for what is not ours."""
    if not target.exists() and not target.is_symlink():
        return False
    if target.is_symlink() or not target.is_dir():
        # Neither could be swapped for a folder without losing what it is.
        raise RefusedError("something that afs-mlx did not place is there", str(target), "remove it yourself")
    ours = (target / MARKER).is_file() or not any(target.iterdir())
    if not ours and not force:
        raise RefusedError(
            "a model that afs-mlx did not place is there", str(target), "move it, or --force replaces it"
        )
    return True


def _link(source: Path, target: Path) -> None:
    """A second name for the file that `source` leads to."""
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        raise AfsError(
            "the weights cannot be linked to LM Studio's folder, it is on another disk or has no hard links",
            str(target.parent.parent),
            "--copy copies them",
        ) from error


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _first_line(path: Path) -> str:
    """The file's first line, empty where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return lines[0].strip() if lines else ""
