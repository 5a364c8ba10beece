"""The workspace's list of what was registered in Ollama from here: fused/deployed.json."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afs_mlx.clients.ollama.server import full
from afs_mlx.core.config import StrictModel, validate
from afs_mlx.core.files import disk_error, read_json, write_json

FILE_NAME = "deployed.json"


class Deployed(StrictModel):
    """One model on one server. `digest` is that of the server's manifest, which changes with the model."""

    tag: str
    server: str
    digest: str
    previous_digest: str = ""
    gguf: str
    gguf_sha256: str
    size_bytes: int
    created: str
    expert: str = ""
    run: str = ""
    overrode: str = ""


class DeployedFile(StrictModel):
    """The file; a newer one is not understood by halves."""

    schema_version: int = 1
    models: tuple[Deployed, ...] = ()


def read(path: Path) -> tuple[Deployed, ...]:
    """All entries, empty where nothing was ever registered; raises AfsError for a damaged file."""
    if not path.is_file():
        return ()
    return validate(DeployedFile, read_json(path, "the list of deployed models"), str(path)).models


def find(entries: tuple[Deployed, ...], server: str, tag: str) -> Deployed | None:
    """The entry of a tag on a server."""
    return next((entry for entry in entries if _key(entry) == (server, full(tag))), None)


def put(path: Path, entry: Deployed) -> None:
    """Add an entry, in place of an older one of the same tag and server."""
    with _alone(path):
        _write(path, (*(other for other in read(path) if _key(other) != _key(entry)), entry))


def drop(path: Path, entry: Deployed) -> None:
    """Take an entry out."""
    with _alone(path):
        _write(path, tuple(other for other in read(path) if _key(other) != _key(entry)))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Read and write with no other process between them: an entry that is lost makes a model a stranger's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The list itself is replaced at every write, so the lock is on a file of its own.
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise disk_error(error, path) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key(entry: Deployed) -> tuple[str, str]:
    return entry.server, full(entry.tag)


def _write(path: Path, entries: tuple[Deployed, ...]) -> None:
    write_json(path, DeployedFile(models=entries).model_dump())
