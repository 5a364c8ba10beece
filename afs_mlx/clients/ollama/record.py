"""The workspace's list of what was registered in Ollama from here: fused/deployed.json."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from afs_mlx.clients.ollama.server import LOOPBACK, full
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
    return next((entry for entry in entries if _key(entry) == (_machine(server), full(tag))), None)


def put(path: Path, entry: Deployed) -> None:
    """Add an entry, in place of an older one of the same tag and server."""
    with _between(path):
        _write(path, (*(other for other in read(path) if _key(other) != _key(entry)), entry))


def drop(path: Path, entry: Deployed) -> None:
    """Take an entry out."""
    with _between(path):
        _write(path, tuple(other for other in read(path) if _key(other) != _key(entry)))


@contextmanager
def registering(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """One registration at a time from this workspace: two of one tag would work on the same model under way.

    `on_wait` hears of another that is running, before it is waited for.
    """
    with _locked(path.with_name(f".{path.name}.registering"), on_wait):
        yield


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A lock on a file of its own, since the list is replaced at every write; it ends with the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise disk_error(error, path) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _between(path: Path) -> AbstractContextManager[None]:
    """Read and write with no other process between them: an entry that is lost makes a model a stranger's."""
    return _locked(path.with_name(f".{path.name}.lock"))


def _key(entry: Deployed) -> tuple[str, str]:
    return _machine(entry.server), full(entry.tag)


def _machine(server: str) -> str:
    """The address with one name for this machine: a server that listens at localhost listens at 127.0.0.1."""
    parts = urlsplit(server)
    if parts.hostname not in LOOPBACK:
        return server
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{LOOPBACK[0]}{port}").geturl()


def _write(path: Path, entries: tuple[Deployed, ...]) -> None:
    write_json(path, DeployedFile(models=entries).model_dump())
