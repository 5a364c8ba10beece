"""Whole models in memory: each loaded once, within a budget, the least recently used let go first.

A base, a fused expert, and a base under an adapter of whole weights are all models here. Knows no prompts.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import mlx.core as mx

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.attaching import load_with_adapter
from afs_mlx.engine.bases.loading import LoadedBase
from afs_mlx.engine.bases.location import weights_hash
from afs_mlx.engine.inference.budget import Budget, bytes_held, bytes_on_loading
from afs_mlx.engine.inference.loaded_adapter import stamp, whole_weights_hash
from afs_mlx.engine.inference.prompts import Prompts
from afs_mlx.engine.inference.slots import SlotTable

# What beside the weights decides an answer; all are small.
DECIDING = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from, and the key it had on disk when it was chosen."""

    key: str
    folder: Path
    whole: Path | None = None

    @classmethod
    def of(cls, folder: Path, whole: Path | None = None) -> "Source":
        """The model in a folder, with an adapter of whole weights where one is named."""
        return cls(_current_key(folder, whole), folder, whole)

    def load(self) -> LoadedBase:
        """Read it; raises AfsError when it is no longer what was chosen."""
        loaded = load_with_adapter(self.folder, self.whole)
        if _current_key(self.folder, self.whole) != self.key:
            where = str(self.whole or self.folder)
            raise AfsError("the model changed on disk since it was chosen", where, "choose the expert again")
        return loaded


class Turn:
    """One computation at a time; a second thread waits, a thread that would wait for itself is told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            raise AfsError("an answer of this model is still being written", "stream", "finish or close it first")
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *exception: object) -> None:
        self._owner = None
        self._lock.release()


@dataclass
class Resident:
    """A model in memory. `turn` is held while computing with it, `users` keep it from being let go."""

    source: Source
    loaded: LoadedBase
    slots: SlotTable
    prompts: Prompts
    size_bytes: int
    used_s: float
    notice: str = ""
    users: list[int] = field(default_factory=list)  # threads
    turn: Turn = field(default_factory=Turn)


class Residents:
    """The models in memory. `others_bytes` tells what else counts against the models' budget."""

    def __init__(self, budget: Budget, clock: Callable[[], float], others_bytes: Callable[[], int]) -> None:
        self._budget = budget
        self._clock = clock
        self._others_bytes = others_bytes
        self._loading = threading.Lock()  # one model is read at a time, so that the sums are right
        self._changed = threading.Condition()
        self._models: dict[str, Resident] = {}

    @contextmanager
    def lease(self, source: Source) -> Iterator[Resident]:
        """The model, loaded if it is not there; it stays at least as long as it is in use here.

        Raises AfsError for a model that is damaged or larger than this machine's memory.
        """
        thread = threading.get_ident()
        resident = self._used(source.key)
        if resident is None:
            with self._loading:
                resident = self._used(source.key) or self._load(source)
        try:
            yield resident
        finally:
            with self._changed:
                resident.users.remove(thread)
                resident.used_s = self._clock()
                self._changed.notify_all()

    def models(self) -> list[Resident]:
        """What is in memory, the least recently used first."""
        with self._changed:
            return sorted(self._models.values(), key=lambda model: model.used_s)

    def unload_idle(self) -> list[str]:
        """Let go what was not used for the budget's `idle_s`; returns the keys."""
        now = self._clock()
        with self._changed:
            idle = [m for m in self._models.values() if not m.users and now - m.used_s >= self._budget.idle_s]
            for model in idle:
                del self._models[model.source.key]
        if idle:
            mx.clear_cache()
        return [model.source.key for model in idle]

    def clear(self) -> None:
        """Let all go that nobody uses."""
        with self._changed:
            self._models = {key: model for key, model in self._models.items() if model.users}
        mx.clear_cache()

    def _used(self, key: str) -> Resident | None:
        with self._changed:
            found = self._models.get(key)
            if found is not None:
                found.users.append(threading.get_ident())
            return found

    def _load(self, source: Source) -> Resident:
        expected = bytes_on_loading(source.folder)
        self._make_room(source, expected)
        loaded = source.load()
        size = bytes_held(loaded.model)
        notice = ""
        if size > self._budget.models_bytes:
            notice = (
                f"{source.folder.name} takes {_gb(size)}, the budget for models is "
                f"{_gb(self._budget.models_bytes)}: it runs alone"
            )
        resident = Resident(
            source, loaded, SlotTable(loaded.model), Prompts(loaded.tokenizer), size, self._clock(), notice
        )
        resident.users.append(threading.get_ident())
        with self._changed:
            self._models[source.key] = resident
        return resident

    def _make_room(self, source: Source, needed: int) -> None:
        """Let models go until the new one fits or is alone; waits for one that is in use."""
        if needed > self._budget.machine_bytes:
            raise AfsError(
                f"the model takes {_gb(needed)}, this machine has {_gb(self._budget.machine_bytes)}",
                str(source.folder),
                "use a smaller or a quantised base",
            )
        with self._changed:
            while self._models and self._held() + needed > self._budget.models_bytes:
                idle = [model for model in self._models.values() if not model.users]
                if idle:
                    del self._models[min(idle, key=lambda model: model.used_s).source.key]
                    mx.clear_cache()
                    continue
                if any(threading.get_ident() in model.users for model in self._models.values()):
                    where, fix = str(source.folder), "finish or close it first, or raise the memory budget"
                    raise AfsError("no room for this model while an answer is still being written", where, fix)
                self._changed.wait()

    def _held(self) -> int:
        return sum(model.size_bytes for model in self._models.values()) + self._others_bytes()


def _current_key(folder: Path, whole: Path | None) -> str:
    """One sha256 over all that decides an answer; computed again only when a file's size or time says so."""
    paths = [*sorted(folder.glob("*.safetensors")), *(folder / name for name in DECIDING)]
    stats = [(path.name, path.stat()) for path in paths if path.is_file()]
    stamps = tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)
    return _key(folder, whole, stamps, stamp(whole) if whole else None)


@lru_cache(maxsize=64)
def _key(folder: Path, whole: Path | None, _stamps: object, _whole_stamp: object) -> str:
    digest = hashlib.sha256(weights_hash(folder).encode())
    for name in DECIDING:
        path = folder / name
        digest.update(f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''}".encode())
    if whole is not None:
        digest.update(whole_weights_hash(whole).encode())
    return digest.hexdigest()


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
