"""Where a base lies on this machine, and which one is taken. Reads folders and caches, never the network, never mlx."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError, MissingError, UsageError, closest
from afs_mlx.core.files import folder_size_bytes, read_json, sha256_of, write_json
from afs_mlx.core.machine import Machine
from afs_mlx.core.model_folder import missing_files
from afs_mlx.core.paths import cache_folder
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.schema.base import Base

EMBEDDED = "smollm2-135m"
AUTO = "auto"
BLOB = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class BaseFolder:
    """A base on disk. `id` is the catalog's, or the folder for a local model; `notice` is for the person."""

    id: str
    folder: Path
    demo: bool
    notice: str = ""

    @property
    def label(self) -> str:
        """The id as one word of a file name."""
        return Path(self.id).name.lower()

    @property
    def identity(self) -> dict[str, str]:
        """What artifacts record: id, revision where known, and the exact weights."""
        return {"id": self.id, "revision": _revision(self.folder), "weights_sha256": weights_hash(self.folder)}


def choose_base(wanted: str, own: str, bases: Mapping[str, Base]) -> BaseFolder:
    """The base for `wanted`: `auto`, a catalog id or a local model folder; `own` is the expert's.

    `auto` takes the own base where it is on disk and fits in memory, else the embedded one, and says so.
    Raises MissingError (exit 3) with the command that gets it.
    """
    if wanted != AUTO:
        return _named(wanted, bases)
    own_folder = locate(bases[own]) if own in bases else _local(own)
    if own_folder is not None and _fits(own_folder, bases.get(own)):
        return BaseFolder(own, own_folder, own in bases and bases[own].demo)
    why = "is not on this machine" if own_folder is None else "does not fit in this machine's memory"
    embedded = locate(bases[EMBEDDED])
    if embedded is None:
        raise MissingError(
            f"{own} {why}, and neither is the embedded base {EMBEDDED}" if own_folder is None else f"{own} {why}",
            "base",
            f"afs-mlx pull {EMBEDDED} (93 MB, a small real model)"
            + (f", or afs-mlx pull {own}" if own_folder is None else f", or --base {own} to try it all the same"),
        )
    real = f"afs-mlx pull {own}" if own_folder is None else f"--base {own} tries it all the same"
    notice = f"{own} {why}: using the embedded base {EMBEDDED} (demo). The real one: {real}"
    return BaseFolder(EMBEDDED, embedded, True, notice)


def locate(base: Base) -> Path | None:
    """The complete folder of a catalogued base to train and run on, None when it is not here."""
    if base.source == "hub":
        return next((found for name in (base.hub, base.original) if name and (found := hub_snapshot(name))), None)
    folder = own_folder(base.id)
    if base.source == "built" and not is_model_folder(folder):
        build_tiny_qwen2(folder)
    return folder if is_model_folder(folder) else None


def locate_original(base: Base) -> Path | None:
    """The unquantised weights to fuse into, None when they are not here."""
    return hub_snapshot(base.original) if base.source == "hub" and base.original else locate(base)


def own_folder(base_id: str) -> Path:
    """Where a base that we convert or build ourselves lies."""
    return cache_folder() / "bases" / base_id


def hub_snapshot(repository: str) -> Path | None:
    """The complete snapshot of a repository in the Hub cache, None when there is none or half of one; no network.

    The snapshot that `main` last stood for comes first, then the newest other.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    root = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    snapshots = [path for path in (root / "snapshots").glob("*") if path.is_dir()]
    main = root / "refs" / "main"
    commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    snapshots.sort(key=lambda path: (path.name == commit, path.stat().st_mtime), reverse=True)
    return next((path for path in snapshots if not missing_files(path)), None)


def is_model_folder(folder: Path) -> bool:
    """Whether config, tokenizer and every weight file are there; half a download is not."""
    return folder.is_dir() and not missing_files(folder)


def weights_hash(folder: Path) -> str:
    """One sha256 over names and hashes of a folder's weight files.

    The Hub cache names its blobs by their sha256; for other files the hash is kept beside size and mtime, so that no
    command reads gigabytes just to start.
    """
    lines = [f"{path.name}:{_file_hash(path)}" for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _named(wanted: str, bases: Mapping[str, Base]) -> BaseFolder:
    base = bases.get(wanted) or next((b for b in bases.values() if wanted.lower() in b.lineage), None)
    if base is None:
        return _folder(wanted, bases)
    folder = locate(base)
    if folder is None:
        instead = "" if base.id == EMBEDDED else f", or --base {EMBEDDED}"
        raise MissingError(f"the base {base.id} is not on this machine", "--base", f"afs-mlx pull {base.id}{instead}")
    return BaseFolder(base.id, folder, base.demo)


def _folder(wanted: str, bases: Mapping[str, Base]) -> BaseFolder:
    """A local model folder; what we converted, built or fused ourselves keeps its name and its demo label."""
    folder = _local(wanted)
    if folder is None:
        if Path(wanted).is_absolute() or wanted.startswith((".", "~")):
            raise MissingError("there is no complete model in this folder", wanted, "check the path, or pull a base")
        near = closest(wanted, list(bases))
        raise UsageError(f"{wanted!r} is neither a base id nor a model folder", "--base", near)
    own = next((base for base in bases.values() if folder == own_folder(base.id).resolve()), None)
    if own is not None:
        return BaseFolder(own.id, folder, own.demo)
    manifest = folder / "manifest.json"
    record = read_json(manifest, "the model's manifest") if manifest.is_file() else {}
    return BaseFolder(str(folder), folder, demo=record.get("demo") is True)


def _local(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder.resolve() if is_model_folder(folder) else None


def _fits(folder: Path, base: Base | None) -> bool:
    """Weights, activations and the system together: a base may take two thirds of the memory.

    Off Apple Silicon it is held in float32, whatever it is on disk.
    """
    machine = Machine.here()
    held_bytes = folder_size_bytes(folder)
    if base is not None and not machine.apple_silicon:
        held_bytes = max(held_bytes, base.parameters * 4)
    return held_bytes < machine.memory_bytes * 2 / 3


def _revision(folder: Path) -> str:
    return folder.name if folder.parent.name == "snapshots" else ""


def _file_hash(path: Path) -> str:
    target = path.resolve()
    if target.parent.name == "blobs" and BLOB.match(target.name):
        return target.name
    stat = target.stat()
    key, stamp = str(target), [stat.st_size, stat.st_mtime_ns]
    cache_file = cache_folder() / "hashes.json"
    known = _known_hashes(cache_file)
    if key not in known or known[key]["stamp"] != stamp:
        known = {name: entry for name, entry in known.items() if Path(name).is_file()}
        known[key] = {"stamp": stamp, "sha256": sha256_of(target)}
        write_json(cache_file, known)
    return str(known[key]["sha256"])


def _known_hashes(cache_file: Path) -> dict[str, dict[str, Any]]:
    """What the cache holds; nothing of a broken one, which is written anew."""
    try:
        entries = read_json(cache_file, "the hash cache")
    except AfsError:
        return {}
    return {name: e for name, e in entries.items() if isinstance(e, dict) and e.keys() >= {"stamp", "sha256"}}
