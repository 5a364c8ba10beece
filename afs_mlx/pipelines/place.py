"""A model folder, or the GGUFs that were made of it → LM Studio's folder of models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.clients.lmstudio import MARKER, PROMPT, Placed, find_installation
from afs_mlx.clients.lmstudio import place as place_files
from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import read_json, sha256_of
from afs_mlx.core.machine import Machine
from afs_mlx.core.manifest import provenance
from afs_mlx.core.model_folder import missing_files
from afs_mlx.engine.bases.location import weights_hash

FOREIGN = (".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".gguf")  # weights that MLX does not read
OWN = (MARKER, PROMPT)


@dataclass(frozen=True)
class PlaceConfig:
    """What is placed under which name. `gguf_folder` places the GGUFs in there instead of the MLX folder.

    `facts` (expert, version, run, demo) go into the marker; `shots` is how many solved examples the version shows.
    """

    model_folder: Path
    name: str
    system: str
    facts: dict[str, Any]
    gguf_folder: Path | None = None
    shots: int = 0
    copy: bool = False
    force: bool = False


@dataclass(frozen=True)
class PlaceResult:
    """What lies in LM Studio's folder now, as what (`MLX` or `GGUF`), and what a person has to know."""

    placed: Placed
    kind: str
    notices: tuple[str, ...]


def place(config: PlaceConfig) -> PlaceResult:
    """Put the model where LM Studio looks, whole or not at all.

    Raises MissingError (exit 3) without LM Studio or a model, RefusedError (exit 4) for a name that another model has.
    """
    installation = find_installation()
    gguf = config.gguf_folder is not None
    folder = config.gguf_folder
    files, old = _ggufs(folder, config.model_folder) if folder is not None else (_model_files(config.model_folder), [])
    record = {
        **provenance("export lmstudio"),
        **config.facts,
        "kind": "GGUF" if gguf else "MLX",
        "source": str(config.gguf_folder or config.model_folder),
        "weights_sha256": {name: sha256_of(path) for name, path in files.items()}
        if gguf
        else weights_hash(config.model_folder),
    }
    # LM Studio's own naming: a folder of GGUFs ends in -GGUF, so that both kinds of one expert have room.
    name = f"{config.name}-GGUF" if gguf else config.name
    placed = place_files(installation, name, files, record, system=config.system, copy=config.copy, force=config.force)
    return PlaceResult(placed, "GGUF" if gguf else "MLX", tuple(_notices(config, gguf, old)))


def _model_files(folder: Path) -> dict[str, Path]:
    """What mlx-lm loads and what belongs to it, not what else lies there."""
    if missing := missing_files(folder):
        raise MissingError(f"no complete model is there: {', '.join(missing)} missing", str(folder), "fuse it again")
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix not in FOREIGN and path.name not in OWN and not path.name.startswith(".")
    }


def _ggufs(folder: Path, model_folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Every GGUF of a whole model in the folder, and the names of those that were made of other weights than it has.

    Two bases of one name share a folder of GGUFs, and weights may have changed since; adapters are no models.
    """
    files = {path.name: path for path in sorted(folder.glob("*.gguf")) if not path.name.startswith(".")}
    made_of = _made_of(folder / "manifest.json")
    weights = weights_hash(model_folder) if made_of else ""
    old = [name for name in files if made_of.get(name, weights) != weights]
    if not files:
        raise MissingError("no GGUF was made of this model yet", str(folder), "afs-mlx export gguf makes one")
    if len(old) == len(files):
        what = f"no GGUF was made of these weights: {', '.join(old)} of others"
        raise MissingError(what, str(folder), "afs-mlx export gguf makes one")
    return {name: path for name, path in files.items() if name not in old}, old


def _made_of(manifest: Path) -> dict[str, str]:
    """GGUF → the hash of the weights that it was made of, as far as the manifest tells."""
    try:
        exports = read_json(manifest, "the GGUFs' manifest").get("exports") if manifest.is_file() else None
    except AfsError:
        return {}
    entries = exports.items() if isinstance(exports, dict) else ()
    sources = {name: entry.get("source") for name, entry in entries if isinstance(entry, dict)}
    return {
        name: str(source["weights_sha256"])
        for name, source in sources.items()
        if isinstance(source, dict) and "weights_sha256" in source
    }


def _notices(config: PlaceConfig, gguf: bool, old: list[str]) -> list[str]:
    found = []
    if old:
        found.append(f"left out, made of other weights than the model has now: {', '.join(old)}")
    if not gguf and not Machine.here().apple_silicon:
        found.append("LM Studio runs MLX models on Apple Silicon only: --gguf places the GGUF instead")
    if config.shots:
        found.append(
            f"LM Studio has no place for the {config.shots} solved examples of this version: it sees the system prompt "
            "alone. `afs-mlx export ollama` takes them along"
        )
    return found
