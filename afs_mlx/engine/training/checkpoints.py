"""Checkpoints of a training: each a whole folder or none, bound to base, recipe and rows, the newest kept."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import disk_error, read_json, sha256_of, write_folder, write_json
from afs_mlx.engine.training.progress import Progress

ARRAYS, NUMBERS = "state.safetensors", "state.json"
PARTS = ("weights", "best", "optimizer")


@dataclass(frozen=True)
class Snapshot:
    """All that a training needs to go on bit for bit; arrays by dotted name.

    No generator's state is among it: row order and dropout are functions of the recipe's seed and the step.
    """

    progress: Progress
    weights: dict[str, mx.array]
    best: dict[str, mx.array]
    optimizer: dict[str, mx.array]


@dataclass(frozen=True)
class Checkpoints:
    """The folder checkpoints/ of a run. `identity` says what they belong to, by name: base, recipe, rows."""

    folder: Path
    identity: dict[str, str]
    keep: int

    def save(self, snapshot: Snapshot, every: int = 1) -> str:
        """Write one, remove the oldest beyond `keep`, later ones that were passed over, and halves; returns its name.

        One between the steps that are multiples of `every`, made because a person stopped the run, does not count among
        `keep` and goes with the next. Raises AfsError when the disk is full; the earlier ones are untouched.
        """
        for half in self.folder.glob(".step-*"):  # a process was killed while it saved
            shutil.rmtree(half, ignore_errors=True)
        name = f"step-{snapshot.progress.step:08d}"

        def fill(folder: Path) -> None:
            arrays = {f"{part}.{key}": array for part in PARTS for key, array in getattr(snapshot, part).items()}
            try:
                mx.save_safetensors(str(folder / ARRAYS), arrays)
            except RuntimeError as error:  # mlx does not say why
                raise _disk_error(error, folder) from error
            facts = {"schema_version": 1, "identity": self.identity, "sha256": sha256_of(folder / ARRAYS)}
            write_json(folder / NUMBERS, {**facts, "progress": snapshot.progress.as_json()})

        write_folder(self.folder / name, fill)
        names = self.names()
        scheduled = [other for other in names if other <= name and int(other[5:]) % every == 0]
        for old in set(names) - {name, *scheduled[-self.keep :]}:
            shutil.rmtree(self.folder / old, ignore_errors=True)
        return name

    def names(self) -> list[str]:
        """Oldest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        return sorted(path.name for path in found if path.name[5:].isdigit())

    def latest(self) -> tuple[Snapshot, list[str]] | None:
        """The newest whole checkpoint and what was wrong with newer ones; None where there is none at all.

        Raises AfsError when they belong to another base, recipe or data, and when all are damaged.
        """
        names = self.names()
        damaged: list[str] = []
        for name in reversed(names):
            try:
                return self._read(self.folder / name), damaged
            except _DamagedError as error:
                damaged.append(f"{name}: {error}")
        if not names:
            return None
        raise AfsError(
            "no checkpoint can be read\n" + "\n".join(f"  {line}" for line in damaged),
            str(self.folder),
            "train anew without --resume",
        )

    def at(self, step: int) -> Snapshot | None:
        """The checkpoint of one step, None where it is not there whole."""
        try:
            return self._read(self.folder / f"step-{step:08d}")
        except _DamagedError:
            return None

    def _read(self, folder: Path) -> Snapshot:
        try:
            facts = read_json(folder / NUMBERS, "the checkpoint")
        except AfsError as error:
            raise _DamagedError(error.what) from error
        self._check(facts, folder)
        path = folder / ARRAYS
        try:
            whole = path.is_file() and sha256_of(path) == facts.get("sha256")
        except OSError as error:
            raise _DamagedError(f"{ARRAYS} cannot be read: {error.strerror}") from error
        if not whole:
            raise _DamagedError(f"{ARRAYS} is not what was written")
        try:
            progress = Progress.from_json(str(facts.get("progress")))
        except ValueError as error:
            raise _DamagedError(f"{NUMBERS} is not what was written") from error
        read: Any = mx.load(str(path))
        loaded: dict[str, mx.array] = read
        parts: dict[str, dict[str, mx.array]] = {part: {} for part in PARTS}
        for key, array in loaded.items():
            part, _, name = key.partition(".")
            parts[part][name] = array
        mx.eval(loaded)
        return Snapshot(progress, **parts)

    def _check(self, facts: dict[str, Any], folder: Path) -> None:
        made_for = facts.get("identity")
        if not isinstance(made_for, dict):
            raise _DamagedError(f"{NUMBERS} is not what was written")
        others = [name for name in {**self.identity, **made_for} if made_for.get(name) != self.identity.get(name)]
        if others:
            raise AfsError(
                f"the checkpoint was made with another {', another '.join(others)}",
                str(folder),
                "resume with what the run was started with, or train anew without --resume",
            )


class _DamagedError(Exception):
    """One checkpoint cannot be used; an older one may."""


def _disk_error(error: RuntimeError, folder: Path) -> AfsError:
    free = shutil.disk_usage(folder).free
    if free < 1 << 20:
        return disk_error(OSError(28, "No space left on device"), folder)
    return AfsError(f"the checkpoint cannot be written: {error}", str(folder), "check the disk and the folder's rights")
