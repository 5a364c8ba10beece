"""Answers from models in this process: one pool, a base read once, an expert switched by its adapter."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.experts.catalog import ChosenExpert
from afs_mlx.pipelines.chat.config import ChatConfig
from afs_mlx.pipelines.chat.events import AnswerUsage, ExpertReady
from afs_mlx.pipelines.chat.speaker import First
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

if TYPE_CHECKING:
    from afs_mlx.answering import Answerer
    from afs_mlx.engine.inference.pool import ExpertPool
    from afs_mlx.engine.inference.voice import Voice


class LocalSpeaker:
    """A voice of the pool."""

    holds_opening = False

    def __init__(self, facts: ExpertReady, voice: "Voice", notices: tuple[str, ...]) -> None:
        self.facts, self.notices = facts, notices
        self._voice = voice

    @property
    def usage(self) -> AnswerUsage | None:
        found = self._voice.usage
        return AnswerUsage(**vars(found)) if found else None

    def count(self, messages: Sequence[Message]) -> int:
        return len(self._voice.prompt_tokens(messages))

    def stream(self, messages: Sequence[Message], sampling: Sampling, seed: int | None) -> Iterator[str]:
        try:
            yield from self._voice.stream(messages, sampling, seed)
        except RuntimeError as error:  # how mlx says that the memory does not suffice
            where, fix = self.facts.base, "free some memory, /clear the conversation, or take a smaller base"
            raise AfsError(f"mlx failed: {error}", where, fix) from error


class LocalBackend:
    """The pool behind a conversation. mlx is imported with the first question, or in the background before it."""

    def __init__(self, config: ChatConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._pool: ExpertPool | None = None
        self._found: dict[str, Answerer] = {}
        self._voices: dict[str, Voice] = {}
        self._warming: threading.Thread | None = None
        self._closed = False

    def warm(self, first: First) -> None:
        if self._warming is None:
            # No daemon: a thread that is torn down amid the imports takes the process with it.
            self._warming = threading.Thread(target=self._warm, args=(first,), name="afs-mlx imports")
            self._warming.start()

    def speaker(self, expert: ChosenExpert) -> LocalSpeaker:
        if self._warming is not None:
            self._warming.join()
        found = self._answerer(expert)
        label, notice = expert.label, ""
        try:
            voice = self._opened().voice(found.base, _adapter(found))
        except AfsError as error:
            known = self._voices.get(label)
            if known is None:
                raise
            voice, notice = known, f"{error.where}: {error.what}; what was loaded of it goes on"
        self._voices[label] = voice
        notices = (notice,) if notice else voice.notices
        return LocalSpeaker(_facts(label, found), voice, notices)

    def choose_anew(self, expert: ChosenExpert) -> None:
        with self._lock:
            self._found.pop(expert.label, None)
        self._voices.pop(expert.label, None)

    def facts(self) -> list[str]:
        if self._pool is None:
            return []
        stats = self._pool.stats()
        models = [f"{m.folder.name} {_mb(m.size_bytes)}" for m in stats.models]
        adapters = [f"{folder.name} {_mb(size)}" for folder, size in stats.adapters]
        return [
            f"models in memory: {', '.join(models) or 'none'} (budget {_mb(stats.budget.models_bytes)})",
            f"adapters in memory: {', '.join(adapters) or 'none'}",
            f"prompt caches: {stats.openings} openings, {stats.conversations} conversations, "
            f"{_mb(stats.caches_bytes)} (budget {_mb(stats.budget.caches_bytes)})",
        ]

    def close(self) -> None:
        self._closed = True
        if self._warming is not None:
            self._warming.join()
        if self._pool is not None:
            self._pool.close()

    def _warm(self, first: First) -> None:
        # The first question meets the same error, and there somebody reads it.
        with suppress(Exception):
            expert, opening = first()
            found = self._answerer(expert)
            if not self._closed:
                pool = self._opened()
                if not self._closed:
                    pool.prepare(found.base, _adapter(found), opening)
        with suppress(ImportError):
            from afs_mlx.engine.inference.background import release_thread

            release_thread()

    def _opened(self) -> "ExpertPool":
        from afs_mlx.engine.inference.pool import ExpertPool

        with self._lock:
            self._pool = self._pool or ExpertPool()
            return self._pool

    def _answerer(self, expert: ChosenExpert) -> "Answerer":
        """Found once in a conversation: a run that is deleted meanwhile goes on from memory."""
        with self._lock:
            found = self._found.get(expert.label)
        if found is None:
            found = self._fused(expert) if self._config.fused else self._with_adapter(expert)
            with self._lock:
                self._found[expert.label] = found
        return found

    def _with_adapter(self, expert: ChosenExpert) -> "Answerer":
        from afs_mlx.answering import for_expert

        config = self._config
        return for_expert(expert, config.base, self._run(expert), config.catalog, config.workspace)

    def _fused(self, expert: ChosenExpert) -> "Answerer":
        """The fused model of the run that would answer; a named run's does without the base."""
        from afs_mlx.answering import Answerer
        from afs_mlx.engine.bases.location import choose_base, is_model_folder
        from afs_mlx.runs.selection import usable_run

        config = self._config
        name = self._run(expert) or expert.expert.pinned
        run = usable_run(config.workspace, expert.name, name) if name else self._with_adapter(expert).run
        if run is None:
            fix = f"afs-mlx train {expert.label}, then afs-mlx fuse {expert.label}; or leave --fused out"
            raise MissingError(f"{expert.label} has no adapter that could be fused", "--fused", fix)
        folder = config.workspace.fused / expert.name / run.name
        if not is_model_folder(folder):
            raise MissingError(
                f"the run {run.name} has not been fused",
                config.workspace.shown(folder),
                f"afs-mlx fuse {expert.label} --run {run.name}, or leave --fused out",
            )
        return Answerer(expert, choose_base(str(folder), "", config.catalog.bases), run, "fused", (), fused=True)

    def _run(self, expert: ChosenExpert) -> str:
        """A run is named for the expert that the conversation began with."""
        return self._config.run if expert.name == self._config.expert.partition("@")[0] else ""


def _adapter(found: "Answerer") -> Path | None:
    return found.run.path if found.run and not found.fused else None


def _facts(label: str, found: "Answerer") -> ExpertReady:
    run = found.run
    adapter = f"{run.name} ({found.reason})" if run else ""
    base = run.base if run and found.fused else found.base.id
    return ExpertReady(label, base, found.base.demo, adapter, found.notices, run.name if run else "", found.fused)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
