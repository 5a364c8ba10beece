"""One run: adapters/<expert>/<run>/ with run.json, metrics.jsonl and an adapter that mlx-lm loads as it is."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import disk_error, read_json, write_json
from afs_mlx.core.manifest import now
from afs_mlx.core.paths import Workspace
from afs_mlx.schema.expert import NAME

WEIGHTS = "adapters.safetensors"


@dataclass(frozen=True)
class Run:
    """A run folder and what run.json says of it."""

    path: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def expert(self) -> str:
        return str(self.record.get("expert", ""))

    @property
    def base(self) -> str:
        """The catalog id (or folder) of the base that the adapter belongs to."""
        base = self.record.get("base")
        return str(base.get("id", "")) if isinstance(base, dict) else ""

    @property
    def status(self) -> str:
        return str(self.record.get("status", "unknown"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises AfsError when the folder holds no whole run."""
        if not (path / "run.json").is_file():
            raise AfsError("the folder holds no run.json", str(path), "name a folder below adapters/<expert>/")
        run = cls(path, read_json(path / "run.json", "run.json"))
        if run.expert and not NAME.match(run.expert):
            # The name becomes a folder below fused/ and evals/results/.
            raise AfsError(f"{run.expert!r} is no expert's name", str(path / "run.json"), "correct the key `expert`")
        return run

    @property
    def usable(self) -> bool:
        """Whether an adapter is there, finished or stopped early on purpose."""
        return (self.path / WEIGHTS).is_file() and self.status in ("finished", "interrupted", "imported")


def new_run_name(version: str, base: str) -> str:
    """`v2-smollm2-135m-20261123-141503`: sorts by time within a version, says what it stands on."""
    stamp = now().replace("-", "").replace(":", "").replace("T", "-").rstrip("Z")
    return "-".join(part for part in (version, Path(base).name.lower(), stamp) if part)


def create(folder: Path, record: dict[str, Any]) -> Path:
    """Make an empty run folder; a name that is taken gets a number. Returns the folder."""
    for number in range(1, 1000):
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            path.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise disk_error(error, path) from error
        write_json(path / "run.json", record)
        return path
    raise AfsError("the run folder exists already", str(folder), "name another folder with --out")


def runs_of(workspace: Workspace, expert: str) -> list[Run]:
    """Every readable run of an expert, oldest first; one broken run.json must not keep the others from answering."""
    folder = workspace.adapters / expert
    if not folder.is_dir():
        return []
    found: list[Run] = []
    for path in folder.iterdir():
        with contextlib.suppress(AfsError):
            found.append(Run.read(path))
    return sorted(found, key=lambda run: (str(run.record.get("started_at", "")), run.name))


def find_run(workspace: Workspace, expert: str, name: str) -> Run:
    """The named run of an expert; raises MissingError that lists what is there."""
    path = workspace.adapters / expert / name
    if not (path / "run.json").is_file():
        known = ", ".join(run.name for run in runs_of(workspace, expert)) or "none"
        raise MissingError(f"{expert} has no run {name!r}", str(path.parent), f"runs: {known}")
    return Run.read(path)


class Metrics:
    """Appends one JSON object a line to metrics.jsonl; each line is on disk when `write` returns.

    A line that a power cut left half is ended first, so that it spoils no other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = "\n" if _torn(path) else ""

    def write(self, **values: float | int | str | None) -> None:
        line = self._start + json.dumps(values, ensure_ascii=False) + "\n"
        self._start = ""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(error, self._path) from error


def _torn(path: Path) -> bool:
    """Whether the file's last line has no end."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            if not file.tell():
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False
    except OSError as error:
        raise disk_error(error, path) from error
