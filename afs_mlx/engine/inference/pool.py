"""One base in memory, many experts: each base and adapter read once, switched by a pointer.

Stands below a chat and a server alike: it takes folders and messages, knows no expert, prints nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import mlx.core as mx

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.lineage import fit_notice
from afs_mlx.engine.bases.loading import LoadedBase
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.engine.inference.background import Background
from afs_mlx.engine.inference.budget import Budget
from afs_mlx.engine.inference.loaded_adapter import AdapterShelf, LoadedAdapter, is_whole, stamp
from afs_mlx.engine.inference.prompt_cache import PromptCaches
from afs_mlx.engine.inference.residents import Residents, Source
from afs_mlx.engine.inference.voice import Voice
from afs_mlx.schema.message import Message


@dataclass(frozen=True)
class ModelStats:
    """A model in memory; `slots` is how many of its layers adapters may change."""

    folder: Path
    size_bytes: int
    slots: int
    idle_s: float
    in_use: bool


@dataclass(frozen=True)
class PoolStats:
    """What the pool holds; `active_bytes` is all that mlx holds in this process."""

    models: tuple[ModelStats, ...]
    adapters: tuple[tuple[Path, int], ...]  # folder, bytes
    openings: int
    conversations: int
    models_bytes: int
    adapters_bytes: int
    caches_bytes: int
    active_bytes: int
    budget: Budget


class ExpertPool:
    """Bases, fused models, adapters and prompt caches of this process. May be used from several threads."""

    def __init__(self, budget: Budget | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget or Budget.here()
        self._clock = clock
        self._shelf = AdapterShelf()
        self._caches = PromptCaches(self.budget.caches_bytes)
        self._residents = Residents(self.budget, clock, self._adapters_bytes)
        self._background = Background("afs-mlx models")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def voice(self, base: BaseFolder, adapter: Path | None = None) -> Voice:
        """An expert's voice on a base or fused model; reads what is not in memory yet.

        An adapter is looked at on disk each time: one that was replaced is read again, one that was deleted goes on
        from memory, and `Voice.notices` says so. Raises AfsError for a base or adapter that is missing, damaged or of
        another base, and MissingError for one that is not there; what was loaded stays.
        """
        self._require_open()
        self.unload_idle()
        folder = adapter.resolve() if adapter is not None else None
        # Of one that is gone, memory or the shelf's error tells.
        whole = folder if folder is not None and stamp(folder) is not None and is_whole(folder) else None
        if whole is not None:
            fit_notice(base, whole)
        source = Source.of(base.folder, whole)
        loaded: LoadedAdapter | None = None
        notice = ""
        with self._residents.lease(source) as resident:
            if folder is not None and whole is None:
                loaded, notice = self._shelf.get(source.key, base, folder, resident.slots)
                resident.slots.attach(loaded.factors)
                self._shelf.shrink(self.budget.models_bytes - self._models_bytes())
            notices = tuple(text for text in (resident.notice, notice) if text)
            return Voice(base, source, loaded, resident.prompts, self._residents, self._caches, notices)

    def warm(self, voice: Voice, opening: Sequence[Message]) -> "Future[int]":
        """Prefill in the background what a conversation begins with: the system text and few-shot turns.

        The future gives the number of tokens; an error stays in it. A question meanwhile waits for the rest.
        """
        self._require_open()
        messages = tuple(opening)
        return self._background.submit(lambda: voice.prefill(messages, self._background.closed))

    def prepare(
        self, base: BaseFolder, adapter: Path | None = None, opening: Sequence[Message] = ()
    ) -> "Future[Voice]":
        """`voice` and `warm` in the background, on one thread that ends cleanly: the model loads while a person types.

        The future gives the voice, or what `voice` raises; a prefill that fails is left to the first question.
        """
        self._require_open()
        messages = tuple(opening)

        def read() -> Voice:
            voice = self.voice(base, adapter)
            with suppress(AfsError):
                if messages:
                    voice.prefill(messages, self._background.closed)
            return voice

        return self._background.submit(read)

    @contextmanager
    def borrow(self, base: BaseFolder) -> Iterator[LoadedBase]:
        """The bare model for another computation, such as a router's states; answers on it wait meanwhile."""
        self._require_open()
        with self._residents.lease(Source.of(base.folder)) as resident, resident.turn:
            yield resident.loaded

    def unload_idle(self) -> int:
        """Let models go that were not used for `budget.idle_s`, and their caches; returns how many went."""
        gone = self._residents.unload_idle()
        for key in gone:
            self._caches.forget(key)
        return len(gone)

    def stats(self) -> PoolStats:
        """What is in memory now."""
        now, kept = self._clock(), self._caches.kept()
        models = self._residents.models()
        adapters = self._shelf.adapters()
        openings = sum(each.is_opening for each in kept)
        return PoolStats(
            models=tuple(
                ModelStats(m.source.folder, m.size_bytes, len(m.slots), now - m.used_s, bool(m.users)) for m in models
            ),
            adapters=tuple((adapter.folder, adapter.size_bytes) for adapter in adapters),
            openings=openings,
            conversations=len(kept) - openings,
            models_bytes=sum(model.size_bytes for model in models),
            adapters_bytes=sum(adapter.size_bytes for adapter in adapters),
            caches_bytes=sum(each.size_bytes for each in kept),
            active_bytes=mx.get_active_memory(),
            budget=self.budget,
        )

    def close(self) -> None:
        """Stop prefilling and let everything go; a model that still writes an answer goes when that is read."""
        self._background.close()
        self._caches.clear()
        self._shelf.clear()
        self._residents.clear()

    def _require_open(self) -> None:
        if self._background.closed():
            raise AfsError("the pool of models is closed", "pool", "start the program again")

    def _adapters_bytes(self) -> int:
        return sum(adapter.size_bytes for adapter in self._shelf.adapters())

    def _models_bytes(self) -> int:
        return sum(model.size_bytes for model in self._residents.models())
