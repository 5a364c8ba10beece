"""Adapters in memory: read through the checks at the door, and compared with the disk when they are chosen again.

Knows no prompts and no conversations.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import sha256_of
from afs_mlx.engine.adapters.format import CONFIG, LEAF, WEIGHTS, AdapterConfig, check_adapter_folder
from afs_mlx.engine.adapters.lineage import fit_notice
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.engine.inference.slots import Factors, LayerFactors, SlotTable, fold_scale, row_scale

AGAIN = "choose the expert again when it is written whole"

type Stamp = tuple[tuple[int, int, int], ...]  # size, mtime in ns and inode of each file


@dataclass(frozen=True)
class LoadedAdapter:
    """A LoRA or DoRA in memory; `sha256` is of weights and config, since the scale stands there."""

    folder: Path
    sha256: str
    factors: LayerFactors = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """What its arrays hold."""
        return sum(factors.size_bytes for factors in self.factors.values())


def stamp(folder: Path) -> Stamp | None:
    """What tells cheaply whether an adapter's files are still the same; None when one is gone."""
    try:
        stats = [(folder / name).stat() for name in (CONFIG, WEIGHTS)]
    except OSError:
        return None
    return tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats)


def adapter_hash(folder: Path) -> str:
    """One sha256 over config and weights."""
    lines = [f"{name}:{sha256_of(folder / name)}" for name in (CONFIG, WEIGHTS)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether the folder holds whole weights in place of factors; raises AfsError for what is no adapter."""
    return AdapterConfig.read(folder, full=True).fine_tune_type == "full"


def read_adapter(base: BaseFolder, folder: Path, table: SlotTable) -> LoadedAdapter:
    """Check an adapter against the base and read its factors; raises AfsError for one that does not fit."""
    before = stamp(folder)
    fit_notice(base, folder)  # raises for another lineage
    check_adapter_folder(folder, base.folder)
    config = AdapterConfig.read(folder)
    found = mx.load(str(folder / WEIGHTS))
    tensors = found if isinstance(found, dict) else {}
    mx.eval(tensors)  # mlx reads the file only now
    sha256 = adapter_hash(folder)
    if before is None or stamp(folder) != before:
        raise AfsError("the adapter changed while it was read", str(folder), AGAIN)
    layers: dict[str, dict[str, mx.array]] = {}
    for name, array in tensors.items():
        match = LEAF.fullmatch(name)
        if match:
            layers.setdefault(match["path"], {})[match["leaf"]] = array
    linears = table.linears() if config.fine_tune_type == "dora" else {}
    factors = {path: _factors(leaves, config, linears.get(path)) for path, leaves in layers.items()}
    mx.eval([array for each in factors.values() for array in (each.a, each.b)])
    return LoadedAdapter(folder, sha256, factors)


def _factors(leaves: Mapping[str, mx.array], config: AdapterConfig, linear: nn.Module | None) -> Factors:
    """One layer's; a DoRA without its `m` has a b of zeros (the check saw to it) and so leaves the layer alone."""
    scale, a, b = config.lora_parameters.scale, leaves["lora_a"], leaves["lora_b"]
    factors = fold_scale(a, b, scale)
    if linear is None or "m" not in leaves:  # a layer that is not there is told when the slots are attached
        return factors
    return replace(factors, row_scale=row_scale(linear, a, b, scale, leaves["m"]))


@dataclass
class _Shelved:
    adapter: LoadedAdapter
    stamp: Stamp | None


class AdapterShelf:
    """Every adapter that was chosen, by base and folder, the least recently chosen first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shelved: dict[tuple[str, Path], _Shelved] = {}

    def get(self, base_key: str, base: BaseFolder, folder: Path, table: SlotTable) -> tuple[LoadedAdapter, str]:
        """The adapter in `folder` as it is on disk now, and a notice, empty where nothing happened to it.

        One that was replaced is read again. One that was deleted goes on from memory. Raises AfsError for one that is
        damaged or of another base; what was loaded stays loaded.
        """
        key = (base_key, folder)
        with self._lock:
            known = self._shelved.get(key)
            now = stamp(folder)
            notice = ""
            if known is None:
                known = _Shelved(read_adapter(base, folder, table), now)
            elif now is None:
                notice = f"the adapter {folder} is no longer on disk: it goes on from memory until this program ends"
            elif now != known.stamp:
                if adapter_hash(folder) != known.adapter.sha256:
                    known = _Shelved(read_adapter(base, folder, table), now)
                    notice = f"the adapter {folder} was replaced on disk: the new one answers from here on"
                known.stamp = now
            self._shelved.pop(key, None)
            self._shelved[key] = known
            return known.adapter, notice

    def adapters(self) -> list[LoadedAdapter]:
        """All that are in memory."""
        with self._lock:
            return [shelved.adapter for shelved in self._shelved.values()]

    def shrink(self, limit_bytes: int) -> None:
        """Let the least recently chosen go until the rest fits; the last one chosen stays."""
        with self._lock:
            total = sum(shelved.adapter.size_bytes for shelved in self._shelved.values())
            for key in list(self._shelved)[:-1]:
                if total <= limit_bytes:
                    return
                total -= self._shelved.pop(key).adapter.size_bytes

    def clear(self) -> None:
        """Let all go."""
        with self._lock:
            self._shelved = {}


def whole_weights_hash(folder: Path) -> str:
    """The hash of an adapter of whole weights; raises MissingError when it is not there."""
    if stamp(folder) is None:
        raise MissingError("the adapter is no longer on disk", str(folder), "train or convert it again")
    return adapter_hash(folder)
