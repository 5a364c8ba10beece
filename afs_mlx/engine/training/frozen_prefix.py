"""The blocks below the first adapted one give the same output every epoch: computed once per batch and kept.

The stock model runs in two halves by lending it a part of its own block list; nothing is patched.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from afs_mlx.engine.training.batches import Batch

# Backbones that take `input_embeddings` as the plain input of their first block (read in mlx-lm's source).
SPLITTABLE = frozenset({"LlamaModel", "Qwen2Model", "Qwen3Model"})


class FrozenPrefix:
    """Hidden states (rows, seq, width) after the first `depth` blocks, kept up to `budget_bytes`."""

    def __init__(self, model: nn.Module, adapted_blocks: int, budget_bytes: int) -> None:
        self._inner = model.model
        splittable = type(self._inner).__name__ in SPLITTABLE
        self.depth = len(model.layers) - adapted_blocks if splittable and adapted_blocks > 0 else 0
        # As long as the whole model: some backbones look up their masks by a layer's number.
        self._no_cache = [None] * len(model.layers)
        self._budget_bytes = budget_bytes
        self._kept: dict[tuple[str, int], mx.array] = {}
        self.kept_bytes = 0

    def hidden(self, key: tuple[str, int], batch: Batch) -> mx.array:
        """The prefix's output for a batch that always bears the same key."""
        if key in self._kept:
            return self._kept[key]
        with self._blocks(0, self.depth), self._without_norm():
            hidden = mx.stop_gradient(self._inner(mx.array(batch.inputs), self._no_cache))
        mx.eval(hidden)
        if self.kept_bytes + hidden.nbytes <= self._budget_bytes:
            self._kept[key] = hidden
            self.kept_bytes += hidden.nbytes
        return hidden

    def finish(self, batch: Batch, hidden: mx.array) -> mx.array:
        """The backbone's output from where `hidden` left off."""
        with self._blocks(self.depth, None):
            output: mx.array = self._inner(mx.array(batch.inputs), self._no_cache, input_embeddings=hidden)
        return output

    @contextmanager
    def _blocks(self, start: int, stop: int | None) -> Iterator[None]:
        whole = self._inner.layers
        self._inner.layers = whole[start:stop]
        try:
            yield
        finally:
            self._inner.layers = whole

    @contextmanager
    def _without_norm(self) -> Iterator[None]:
        norm = self._inner.norm
        self._inner.norm = nn.Identity()
        try:
            yield
        finally:
            self._inner.norm = norm
