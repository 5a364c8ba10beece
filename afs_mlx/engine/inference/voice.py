"""One expert's voice: a base or fused model, perhaps an adapter, and what was computed of its prompts before."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.engine.inference.decoding import Decoding, Usage
from afs_mlx.engine.inference.loaded_adapter import LoadedAdapter
from afs_mlx.engine.inference.prompt_cache import CacheKey, PromptCaches, reusable
from afs_mlx.engine.inference.prompts import Prompts, common_prefix
from afs_mlx.engine.inference.residents import Resident, Residents, Source
from afs_mlx.engine.inference.slots import NOTHING
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

STEP = 512  # tokens of a prompt computed together, and how soon a prefill can be stopped
SHORTEST_OPENING = 16  # tokens; a shorter one is not worth a place in the store


class Voice:
    """Answers as one expert. Made by `ExpertPool.voice`; it goes on when its files change or its model was let go.

    Several threads may ask: one answers at a time per model, the others wait. One stream belongs to one thread, and a
    thread of one's own ends with `background.release_thread()`.
    """

    def __init__(
        self,
        base: BaseFolder,
        source: Source,
        adapter: LoadedAdapter | None,
        prompts: Prompts,
        residents: Residents,
        caches: PromptCaches,
        notices: Sequence[str] = (),
    ) -> None:
        self.base = base
        self.adapter = adapter
        self.notices = tuple(notices)
        self.usage: Usage | None = None
        self._source = source
        self._prompts = prompts
        self._residents = residents
        self._caches = caches
        self._key: CacheKey = (source.key, adapter.sha256 if adapter else "")
        self._opening: tuple[tuple[Message, ...], list[int]] | None = None

    @property
    def key(self) -> CacheKey:
        """What its prompt caches belong to: the model's hash and the adapter's, "" for none."""
        return self._key

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation up to where the answer begins."""
        return self._prompts.tokens(messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None) -> Iterator[str]:
        """Yield the answer piece by piece; `usage` tells the cost afterwards, also of an answer that was cut off.

        Raises AfsError when the prompt leaves no room within `sampling.context_tokens`, and when this thread has
        another answer of the same model open.
        """
        tokens, room = self._prompts.fitting(messages, sampling)
        decoding = Decoding(tokens)
        try:
            with self._computing() as resident:
                decoding.waited_s = time.monotonic() - decoding.began_s
                model = resident.loaded.model
                cache, decoding.cached_tokens = self._known(model, tokens)
                computed = self._with_opening(model, cache, decoding.cached_tokens, messages, tokens)
                try:
                    yield from decoding.pieces(resident.loaded, sampling, room, seed, cache, computed)
                except GeneratorExit:
                    self._keep(cache, decoding)
                    raise
                self._keep(cache, decoding)  # after any other exception nobody knows what the cache holds
        finally:
            self.usage = decoding.usage()

    def prefill(self, opening: Sequence[Message], stopped: Callable[[], bool] = lambda: False) -> int:
        """Compute what conversations that begin with `opening` begin with, and keep it; returns its tokens.

        Returns 0 when `stopped` said so, or where the model's caches cannot be kept.
        """
        tokens = self._remembered(tuple(opening))
        with self._computing() as resident:
            if self._caches.covers(self._key, tokens):
                return len(tokens)
            cache, computed = self._known(resident.loaded.model, [*tokens, -1])
            if not _plain(cache) or not _extend(resident.loaded.model, cache, tokens[computed:], stopped):
                return 0
            self._caches.keep_opening(self._key, tokens, cache)
        return len(tokens)

    @contextmanager
    def _computing(self) -> Iterator[Resident]:
        """The model with this voice's adapter on it, for this thread alone."""
        factors = self.adapter.factors if self.adapter else NOTHING
        with self._residents.lease(self._source) as resident, resident.turn:
            resident.slots.attach(factors)
            with resident.slots.using(factors):
                yield resident

    def _known(self, model: nn.Module, tokens: Sequence[int]) -> tuple[list[Any], int]:
        """Caches to begin with, and how many of the tokens they hold."""
        return self._caches.take(self._key, tokens) or (make_prompt_cache(model), 0)

    def _with_opening(
        self, model: nn.Module, cache: list[Any], computed: int, messages: Sequence[Message], tokens: list[int]
    ) -> int:
        """Compute and keep the conversation's opening where it is not known; returns what the cache holds then."""
        opening = self._remembered(self._opening_of(messages))
        size = len(opening)
        if size < SHORTEST_OPENING or size <= computed or size >= len(tokens) or not _plain(cache):
            return computed
        if common_prefix(opening, tokens) < size or not _extend(model, cache, tokens[computed:size]):
            return computed
        self._caches.keep_opening(self._key, opening, cache)
        return size

    def _opening_of(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The opening that was prefilled where the conversation begins with it, else its system text."""
        known = self._opening
        if known and known[0] and tuple(messages[: len(known[0])]) == known[0]:
            return known[0]
        return tuple(messages[:1]) if messages and messages[0].role == "system" else ()

    def _remembered(self, opening: tuple[Message, ...]) -> list[int]:
        """The opening's tokens; the last one asked for is not tokenised again."""
        known = self._opening  # once: another thread may prefill meanwhile
        if known is None or known[0] != opening:
            known = self._opening = opening, self._prompts.opening(opening)
        return known[1]

    def _keep(self, cache: list[Any], decoding: Decoding) -> None:
        known = [*decoding.prompt, *decoding.produced]
        sizes = {layer.offset for layer in cache} if reusable(cache) else set()
        if len(sizes) == 1 and (size := sizes.pop()) <= len(known):
            self._caches.keep(self._key, known[:size], cache)


def _plain(cache: Sequence[Any]) -> bool:
    return all(type(layer) is KVCache for layer in cache)


def _extend(model: nn.Module, cache: list[Any], tokens: list[int], stopped: Callable[[], bool] = lambda: False) -> bool:
    """Compute further tokens into the caches; False when it was stopped on the way."""
    for start in range(0, len(tokens), STEP):
        if stopped():
            return False
        model(mx.array(tokens[start : start + STEP])[None], cache=cache)
        mx.eval([layer.state for layer in cache])
    return True
