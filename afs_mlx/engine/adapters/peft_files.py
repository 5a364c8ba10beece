"""Which files of a folder are one PEFT adapter: subfolders and names of several, shards, half downloads.

PEFT saves the adapter "default" in the folder itself and every other in a subfolder of its name; a raw state dict
carries the names within its keys.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.errors import AfsError, MissingError, UsageError, problems
from afs_mlx.core.files import read_json
from afs_mlx.engine.adapters.peft_config import CONFIG
from afs_mlx.engine.adapters.pickle_reader import read_pickle
from afs_mlx.engine.adapters.tensors import Tensor, read_tensors

WEIGHTS = "adapter_model"
DEFAULT = "default"
FIX = "copy or download the adapter's folder again"
PICKLE_FIX = "where you trust it, load it with PEFT and call save_pretrained(folder, safe_serialization=True)"
READERS = {"safetensors": (read_tensors, FIX), "bin": (read_pickle, PICKLE_FIX)}
SHARD = re.compile(rf"{WEIGHTS}-(?P<number>\d{{5}})-of-(?P<count>\d{{5}})\.(safetensors|bin)")
MAX_SHARDS = 1000
PARTIAL = (".incomplete", ".part", ".tmp", ".crdownload")
# What comes after a layer's path; a raw state dict has the adapter's name in it.
LEAF = re.compile(
    r"(?P<path>.+?)\.(?P<leaf>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|modules_to_save)"
    r"(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.(?P<kind>weight|bias))?"
)


@dataclass(frozen=True)
class PeftFolder:
    """Where one adapter lies; `others` are adapters in the same folder that were not meant."""

    path: Path
    others: tuple[str, ...] = ()


def choose_adapter(folder: Path, name: str = "") -> PeftFolder:
    """The adapter called `name`; without a name the folder's own, or the only one in a subfolder.

    Raises UsageError that lists them all where that leaves a choice, AfsError for a folder that may not be read.
    """
    try:
        return _chosen(folder, name)
    except OSError as error:
        raise AfsError(f"the folder cannot be read: {error.strerror}", str(folder), "check its rights") from error


def _chosen(folder: Path, name: str) -> PeftFolder:
    if folder.is_dir():
        list(folder.iterdir())  # glob passes over a folder that it may not read
    inner = tuple(sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}") if _is_peft(path)))
    own = (folder / CONFIG).is_file()
    if name and name in inner:
        return PeftFolder(
            folder / name, tuple(other for other in (DEFAULT, *inner) if other != name and (own or other in inner))
        )
    if own:
        return PeftFolder(folder, inner)
    if len(inner) == 1 and not name:
        return PeftFolder(folder / inner[0])
    if inner:
        what = f"no adapter {name!r} here" if name else "several adapters here"
        raise UsageError(f"{what}: {', '.join(inner)}", str(folder), f"name one: --adapter {inner[0]}")
    return PeftFolder(folder)


def weight_files(folder: Path) -> list[Path]:
    """The adapter's weight files, all there. Raises MissingError for half a download."""
    for kind in READERS:
        whole = folder / f"{WEIGHTS}.{kind}"
        if whole.exists():
            return [whole]
        index = folder / f"{WEIGHTS}.{kind}.index.json"
        shards = {path.name for path in folder.glob(f"{WEIGHTS}-*-of-*.{kind}") if SHARD.fullmatch(path.name)}
        if index.exists() or shards:
            named = set(_weight_map(index).values()) if index.exists() else _counted(shards)
            if absent := sorted(named - shards):
                raise MissingError(f"half a download: {', '.join(absent[:5])} missing", str(folder), FIX)
            return [folder / name for name in sorted(named)]
    partial = sorted(file.name for file in folder.glob("*") if file.suffix in PARTIAL)
    found = f"half a download: only {', '.join(partial)}" if partial else f"it has no {WEIGHTS}.safetensors"
    raise MissingError(found, str(folder), FIX)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of an adapter's files by its full name; numbers are not read yet."""
    tensors: dict[str, Tensor] = {}
    found = []
    for path in weight_files(folder):
        read, fix = READERS[path.suffix[1:]]
        part = read(path, fix)
        found += [f"{name}: in {tensors[name].path.name} and in {path.name}" for name in part if name in tensors]
        tensors |= part
    for index in folder.glob(f"{WEIGHTS}.*.index.json"):
        if len({tensor.path for tensor in tensors.values()}) > 1:
            found += [
                f"{name}: named in {index.name}, in no file" for name in _weight_map(index) if name not in tensors
            ]
    if found:
        raise problems(found, "the files do not make one adapter", str(folder), FIX)
    return tensors


def without_name(tensors: dict[str, Tensor], name: str, where: Path) -> dict[str, Tensor]:
    """The tensors of one adapter, its name taken out of their keys. Raises UsageError that lists the names."""
    matches = {key: LEAF.fullmatch(key) for key in tensors}
    names = sorted({match["adapter"] or "(no name)" for match in matches.values() if match})
    if name and name not in names and names != ["(no name)"]:
        raise UsageError(f"no adapter {name!r} in this file: {', '.join(names)}", str(where), f"--adapter {names[0]}")
    if len(names) > 1 and not name:
        raise UsageError(
            f"several adapters in one file: {', '.join(names)}", str(where), "name one with --adapter, or save it alone"
        )
    kept: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = matches[key]
        if match is None:
            kept[key] = tensor
        elif (match["adapter"] or "(no name)") == (name if name in names else names[0]):
            kept[".".join(filter(None, (match["path"], match["leaf"], match["kind"])))] = tensor
    return kept


def _is_peft(path: Path) -> bool:
    try:
        return "peft_type" in read_json(path, "the adapter's config")
    except AfsError:
        return False


def _counted(shards: set[str]) -> set[str]:
    """All the files that the shards' own names count."""
    matches = [match for name in shards if (match := SHARD.fullmatch(name))]
    count = max(int(match["count"]) for match in matches)
    kind = matches[0][3]
    return shards | {f"{WEIGHTS}-{i:05}-of-{count:05}.{kind}" for i in range(1, min(count, MAX_SHARDS) + 1)}


def _weight_map(index: Path) -> dict[str, str]:
    value = read_json(index, "the list of weight files").get("weight_map")
    if not isinstance(value, dict) or not value:
        raise AfsError("the list of weight files has no weight_map", str(index), FIX)
    strange = sorted({str(file)[:100] for file in value.values() if not SHARD.fullmatch(str(file))})
    if strange:
        raise problems(strange, "the list names files that are no shards of this adapter", str(index), FIX)
    return value
