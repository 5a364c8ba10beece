"""A GGUF → a model in Ollama, with what the Modelfile says, and a line in the workspace's list of what was deployed."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from afs_mlx.clients.ollama import record
from afs_mlx.clients.ollama.content import ModelfileContent, modelfile_or_note
from afs_mlx.clients.ollama.events import Noted, RegisterEvent, Stage
from afs_mlx.clients.ollama.record import Deployed
from afs_mlx.clients.ollama.registration import (
    MAX_ANSWER_TOKENS,
    PARTIAL,
    PREVIOUS,
    QUESTION,
    Model,
    place,
    send,
    sibling,
)
from afs_mlx.clients.ollama.server import DIGEST, FILE_NAME, Server, full
from afs_mlx.core.errors import AfsError, MissingError, RefusedError, UsageError
from afs_mlx.core.files import sha256_of

TAG = re.compile(r"([a-zA-Z0-9_][\w.-]{0,79}/)?[a-zA-Z0-9_][\w.-]{0,79}(:[a-zA-Z0-9_][\w.-]{0,79})?", re.ASCII)

WAITING = "another registration from this workspace is running; this one waits for it"

type State = Literal["there", "changed", "gone", "server not reached"]


@dataclass(frozen=True)
class RegisterConfig:
    """Which file gets which name, and what it says; `sha256` is the GGUF's, in hexadecimal, as its manifest has it.

    An empty `host` is OLLAMA_HOST, else this machine. `force` replaces a model that was not deployed from here, and
    keeps one whose question failed. `gguf_from_modelfile` is the FROM of the Modelfile that is shown; empty: both lie
    in one folder. `expert`, `run` and `overrode` go into `record`, the list of what was deployed.
    """

    gguf: Path
    sha256: str
    tag: str
    content: ModelfileContent
    record: Path
    gguf_from_modelfile: str = ""
    host: str = ""
    expert: str = ""
    run: str = ""
    overrode: str = ""
    dry_run: bool = False
    smoke: bool = True
    force: bool = False


@dataclass(frozen=True)
class Call:
    """A call that a dry run would make."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class RegisterResult:
    """What is on the server now, or, in a dry run, `calls` alone would have happened."""

    tag: str
    server: str
    version: str
    digest: str
    previous_digest: str
    gguf_sha256: str
    size_bytes: int | None
    uploaded: bool
    answer: str
    modelfile: str
    modelfile_problem: str
    calls: tuple[Call, ...] = ()


def register(config: RegisterConfig, on_event: Callable[[RegisterEvent], None]) -> RegisterResult:
    """Register the GGUF under its tag, whole or not at all.

    Raises MissingError where no server answers, RefusedError (exit 4) for a name that is not ours, and AfsError with
    the server's words and a remedy for all else; an old model of that tag then stays as it was.
    """
    check_tag(config.tag)
    modelfile, problem = modelfile_or_note(config.content, config.gguf_from_modelfile or f"./{config.gguf.name}")
    with Server(config.host) as server:
        if config.dry_run:
            return _planned(config, server.address, modelfile, problem)
        with record.registering(config.record, lambda: on_event(Noted(WAITING))):
            return _registered(config, server, modelfile, problem, on_event)


def _registered(
    config: RegisterConfig, server: Server, modelfile: str, problem: str, on_event: Callable[[RegisterEvent], None]
) -> RegisterResult:
    # Refused before gigabytes are read and sent.
    version, existing = _ready(server, config.tag, config.record, config.force)
    if problem:
        on_event(Noted("a Modelfile could not hold this model's texts; the server gets them as they are"))
    on_event(Stage(f"check {config.gguf.name}"))
    size_bytes, digest = _checked(config)
    model = Model(config.gguf, digest, config.tag, config.content, config.smoke, tolerant=config.force)
    uploaded = send(server, model, on_event)
    entry: list[Deployed] = []

    def finish(manifest_digest: str) -> None:
        entry.append(_entry(config, server.address, manifest_digest, existing, size_bytes))
        record.put(config.record, entry[0])

    answer = place(server, model, bool(existing), finish, on_event)
    return RegisterResult(
        tag=config.tag,
        server=server.address,
        version=version,
        digest=entry[0].digest,
        previous_digest=existing,
        gguf_sha256=config.sha256,
        size_bytes=size_bytes,
        uploaded=uploaded,
        answer=answer,
        modelfile=modelfile,
        modelfile_problem=problem,
    )


def ready(tag: str, path: Path, *, host: str = "", force: bool = False) -> str:
    """The version of a server that would take this name now; raises as `register` does before it reads the GGUF.

    For callers that have minutes of work to do first.
    """
    check_tag(tag)
    with Server(host) as server:
        return _ready(server, tag, path, force)[0]


def deployed(path: Path) -> tuple[Deployed, ...]:
    """What was deployed from this workspace, oldest first; needs no server."""
    return record.read(path)


def states(entries: tuple[Deployed, ...]) -> dict[Deployed, State]:
    """What the servers named in the list say of each entry."""
    found: dict[Deployed, State] = {}
    for address in dict.fromkeys(entry.server for entry in entries):
        mine = [entry for entry in entries if entry.server == address]
        try:
            with Server(address) as server:
                there = server.digests()
        except AfsError:
            found |= dict.fromkeys(mine, "server not reached")
            continue
        for entry in mine:
            digest = there.get(full(entry.tag))
            found[entry] = "gone" if digest is None else "there" if digest == entry.digest else "changed"
    return found


def remove(tag: str, path: Path, *, host: str = "", force: bool = False) -> str:
    """Remove a model that was deployed from here and its line in the list; returns the server's address.

    `force` removes any. Raises RefusedError for one that is not ours or was changed since, MissingError where there is
    none of that tag.
    """
    check_tag(tag)
    with Server(host) as server:
        there = server.digests().get(full(tag))
        entry = record.find(record.read(path), server.address, tag)
        if there is not None:
            if not force and (entry is None or entry.digest != there):
                raise _not_ours(tag, server.address, entry, "`ollama rm` removes it, and so does --force")
            server.delete(tag)
        if entry is not None:
            record.drop(path, entry)
        elif there is None:
            raise MissingError(f"there is no model {tag}", server.address, "afs-mlx export ollama --list shows ours")
        return server.address


def check_tag(tag: str) -> None:
    """Raises UsageError for a name that Ollama would not take, or that we use while we work."""
    if not TAG.fullmatch(tag):
        raise UsageError(
            f"{tag!r} is no name for a model in Ollama", "--name", "letters, digits, dots and hyphens, such as din-v2"
        )
    if full(tag) in (sibling(tag, PARTIAL), sibling(tag, PREVIOUS)):
        raise UsageError(f"{tag!r} is a name that we use while we work", "--name", "leave out what follows the colon")


def _checked(config: RegisterConfig) -> tuple[int, str]:
    """The file's size and digest; raises AfsError unless it is the file that the manifest describes."""
    if not config.gguf.is_file():
        raise MissingError("there is no GGUF", str(config.gguf), "afs-mlx export gguf makes it")
    digest = f"sha256:{sha256_of(config.gguf)}"
    if not DIGEST.match(f"sha256:{config.sha256}"):
        raise AfsError(f"{config.sha256!r} is no sha256", str(config.gguf), "export the GGUF anew")
    if digest != f"sha256:{config.sha256}":
        raise AfsError(
            f"the GGUF is not the one that was exported: its sha256 is {digest[7:19]}…, not {config.sha256[:12]}…",
            str(config.gguf),
            "export it anew: afs-mlx export gguf",
        )
    return config.gguf.stat().st_size, digest


def _ready(server: Server, tag: str, path: Path, force: bool) -> tuple[str, str]:
    """The server's version and the digest of the model that would be replaced, empty where there is none."""
    version = server.version()
    existing = server.digests().get(full(tag), "")
    if existing and not force:
        entry = record.find(record.read(path), server.address, tag)
        if entry is None or entry.digest != existing:
            raise _not_ours(tag, server.address, entry, "take another name with --name, or replace it with --force")
    return version, existing


def _not_ours(tag: str, address: str, entry: Deployed | None, fix: str) -> RefusedError:
    why = "was changed since it was deployed" if entry else "was not deployed from this workspace"
    return RefusedError(f"the model {tag} {why}", address, fix)


def _entry(config: RegisterConfig, address: str, digest: str, existing: str, size_bytes: int) -> Deployed:
    return Deployed(
        tag=config.tag,
        server=address,
        digest=digest,
        previous_digest=existing,
        gguf=str(config.gguf),
        gguf_sha256=config.sha256,
        size_bytes=size_bytes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        expert=config.expert,
        run=config.run,
        overrode=config.overrode,
    )


def _planned(config: RegisterConfig, address: str, modelfile: str, problem: str) -> RegisterResult:
    """The calls of a run, without one; a GGUF that is not there yet has no size and digest."""
    size_bytes = config.gguf.stat().st_size if config.gguf.is_file() else None
    digest = f"sha256:{config.sha256 or '<of the GGUF>'}"
    partial = sibling(config.tag, PARTIAL)
    content = config.content
    body = {
        "model": partial,
        "files": {FILE_NAME: digest},
        "template": content.template,
        "system": content.system,
        "parameters": {**content.parameters, "stop": list(content.stop)},
        "messages": [{"role": role, "content": text} for role, text in content.messages],
        "license": [content.license_text] if content.license_text else [],
    }
    asked = {"model": partial, "messages": [{"role": "user", "content": QUESTION}]}
    calls = [
        Call("GET", "/api/version"),
        Call("GET", "/api/tags"),
        Call("HEAD", f"/api/blobs/{digest}"),
        Call("POST", f"/api/blobs/{digest}", size_bytes=size_bytes),
        Call("POST", "/api/create", {key: value for key, value in body.items() if value}),
        Call("POST", "/api/show", {"model": partial}),
    ]
    if config.smoke:
        calls.append(Call("POST", "/api/chat", {**asked, "options": {"num_predict": MAX_ANSWER_TOKENS}}))
    calls += [
        Call("POST", "/api/copy", {"source": partial, "destination": config.tag}),
        Call("DELETE", "/api/delete", {"model": partial}),
    ]
    return RegisterResult(
        tag=config.tag,
        server=address,
        version="",
        digest="",
        previous_digest="",
        gguf_sha256=config.sha256,
        size_bytes=size_bytes,
        uploaded=False,
        answer="",
        modelfile=modelfile,
        modelfile_problem=problem,
        calls=tuple(calls),
    )
