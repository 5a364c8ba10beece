"""What models computed for prompts, kept by (model, adapter) and tokens, so that a beginning is computed once.

mlx-lm's own LRUPromptCache drops a system prompt as soon as a conversation grows from it; here openings are kept apart,
go last, and are shared: a conversation keeps only what follows. What is taken out is always a copy. Only plain KVCaches
are kept: one that slides or rotates cannot be cut back to a prefix.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache

type CacheKey = tuple[str, str]  # model, adapter
type Tokens = np.ndarray[Any, np.dtype[np.int32]]
type Part = tuple[mx.array, mx.array]  # a layer's keys and values, (1, heads, tokens, width)

SPARE = 256  # tokens of room behind a copy, as much as mlx-lm's cache grows by


@dataclass(frozen=True, eq=False)
class Kept:
    """Keys and values of each layer for `tokens` from the end of `opening` on, from the first one where it is None."""

    key: CacheKey
    tokens: Tokens
    layers: list[Part]
    opening: "Kept | None" = None
    is_opening: bool = False

    @property
    def size_bytes(self) -> int:
        """What its own arrays hold."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def restored(self, length: int) -> list[KVCache]:
        """New caches of the first `length` tokens, with room for more and memory of their own."""
        before = len(self.opening.tokens) if self.opening else 0
        pieces = [(self.layers, length - before)]
        if self.opening is not None:
            pieces.insert(0, (self.opening.layers, min(length, before)))
        return [
            _cache([_cut(layers[number], size) for layers, size in pieces if size > 0], length)
            for number in range(len(self.layers))
        ]


class PromptCaches:
    """The store, bounded in bytes: conversations go before openings, the least recently used first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._kept: list[Kept] = []  # the least recently used first

    def take(self, key: CacheKey, tokens: Sequence[int]) -> tuple[list[KVCache], int] | None:
        """Caches for the longest known beginning of `tokens`, and its length, at most all but the last one.

        A conversation that goes on leaves nothing behind: it comes back with `keep`.
        """
        wanted = np.asarray(tokens, np.int32)
        with self._lock:
            found = [(_common(kept.tokens, wanted[:-1]), kept) for kept in self._kept if kept.key == key]
            # Of equally long ones, the one with the least behind it.
            length, kept = max(found, key=lambda pair: (pair[0], -len(pair[1].tokens)), default=(0, None))
            if kept is None or length == 0:
                return None
            self._remove(kept)
            if kept.is_opening or length < len(kept.tokens):
                self._kept.append(kept)
        return kept.restored(length), length

    def covers(self, key: CacheKey, tokens: Sequence[int]) -> bool:
        """Whether an opening of exactly these tokens is kept; then it counts as used."""
        wanted = np.asarray(tokens, np.int32)
        with self._lock:
            for kept in self._openings(key):
                if np.array_equal(kept.tokens, wanted):
                    self._remove(kept)
                    self._kept.append(kept)
                    return True
        return False

    def keep(self, key: CacheKey, tokens: Sequence[int], layers: Sequence[Any]) -> None:
        """Keep what caches hold for a conversation of exactly `tokens`; an earlier state of it goes."""
        if not reusable(layers):
            return
        known = np.asarray(tokens, np.int32)
        with self._lock:
            openings = [o for o in self._openings(key) if _common(o.tokens, known) == len(o.tokens) < len(known)]
        opening = max(openings, key=lambda each: len(each.tokens), default=None)
        start = len(opening.tokens) if opening else 0
        new = Kept(key, known, _laid_out(layers, start, len(known)), opening)
        with self._lock:
            for old in [kept for kept in self._kept if kept.key == key and not kept.is_opening]:
                if _common(old.tokens, known) == len(old.tokens):
                    self._remove(old)
            self._add(new)

    def keep_opening(self, key: CacheKey, tokens: Sequence[int], layers: Sequence[Any]) -> None:
        """Keep a copy of what caches hold for exactly `tokens`, with which conversations begin."""
        if not reusable(layers) or self.covers(key, tokens):
            return
        parts = _laid_out(layers, 0, len(tokens))
        with self._lock:
            self._add(Kept(key, np.asarray(tokens, np.int32), parts, is_opening=True))

    def forget(self, model: str) -> None:
        """Let everything of a model go."""
        with self._lock:
            self._kept = [kept for kept in self._kept if kept.key[0] != model]

    def clear(self) -> None:
        """Let everything go."""
        with self._lock:
            self._kept = []

    def kept(self) -> list[Kept]:
        """What is there now, the least recently used first."""
        with self._lock:
            return list(self._kept)

    def _openings(self, key: CacheKey) -> list[Kept]:
        return [kept for kept in self._kept if kept.is_opening and kept.key == key]

    def _add(self, new: Kept) -> None:
        if new.size_bytes > self.limit_bytes:
            return
        self._kept.append(new)
        total = sum(kept.size_bytes for kept in self._kept)
        # Stable, so by age within each kind. An opening goes after all that begins with it.
        for kept in sorted(self._kept, key=lambda kept: kept.is_opening):
            if total <= self.limit_bytes:
                return
            total -= kept.size_bytes
            self._remove(kept)

    def _remove(self, gone: Kept) -> None:
        self._kept = [kept for kept in self._kept if kept is not gone]


def reusable(layers: Sequence[Any]) -> bool:
    """Whether caches can be cut back to any prefix and copied; not those of sliding or recurrent layers."""
    return bool(layers) and all(type(layer) is KVCache and layer.keys is not None for layer in layers)


def _laid_out(layers: Sequence[Any], start: int, end: int) -> list[Part]:
    """A copy of the tokens from `start` to `end`, computed to the end: no other thread could finish it."""
    parts = [
        (mx.contiguous(layer.keys[..., start:end, :]), mx.contiguous(layer.values[..., start:end, :]))
        for layer in layers
    ]
    mx.eval(parts)
    return parts


def _cut(part: Part, size: int) -> Part:
    keys, values = part
    return keys[..., :size, :], values[..., :size, :]


def _cache(parts: list[Part], length: int) -> KVCache:
    """One layer's cache from parts that follow one another."""
    keys, values = parts[0]
    spare = [mx.zeros((*array.shape[:2], SPARE, array.shape[3]), array.dtype) for array in (keys, values)]
    cache = KVCache()
    cache.state = (
        mx.concatenate([*(keys for keys, _ in parts), spare[0]], axis=2),
        mx.concatenate([*(values for _, values in parts), spare[1]], axis=2),
        length,
    )
    return cache


def _common(first: Tokens, other: Tokens) -> int:
    """How many tokens at the beginning are the same."""
    size = min(len(first), len(other))
    different = np.flatnonzero(first[:size] != other[:size])
    return int(different[0]) if different.size else size
